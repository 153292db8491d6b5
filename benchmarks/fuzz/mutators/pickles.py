"""PyTorch files: pickles that would run code, tensors that lie about their storage, archives that inflate."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Callable

from benchmarks.fuzz.mutators.numbers import integer, text
from benchmarks.fuzz.mutators.plain_bytes import mutate_bytes

CANARY = "canary"
"""A file that a pickle would make where it ran code."""

_CALLS = (
    ("os", "system", f"touch {CANARY}"),
    ("posix", "system", f"touch {CANARY}"),
    ("builtins", "eval", f"open('{CANARY}', 'w').close()"),
    ("builtins", "exec", f"open('{CANARY}', 'w').close()"),
    ("subprocess", "getoutput", f"touch {CANARY}"),
    ("runpy", "run_path", CANARY),
    ("importlib", "import_module", CANARY),
    ("webbrowser", "open", "http://127.0.0.1:9"),
    ("torch.serialization", "load", "../outside/secret.bin"),
    ("torch.hub", "load_state_dict_from_url", "http://127.0.0.1:9/x"),
    ("numpy", "load", "../outside/secret.bin"),
    ("builtins", "open", "../outside/secret.bin"),
)
_STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"


def mutate_pickle(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """A bare pickle, as torch wrote before 1.6."""
    if rng.random() < 0.5:
        return mutate_bytes(rng, data)
    return _hostile(rng, data)


def mutate_torch_zip(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """An archive with another pickle in it, or other entries, or damaged."""
    if rng.random() < 0.35:
        return mutate_bytes(rng, data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        return mutate_bytes(rng, data)
    pickled = next((name for name in entries if name.endswith("data.pkl")), None)
    if pickled is None:
        return mutate_bytes(rng, data)
    roll = rng.random()
    if roll < 0.55:
        entries[pickled], what = _hostile(rng, entries[pickled])
        return _archive(entries), what
    if roll < 0.75:
        name = rng.choice(list(entries))
        entries[name], what = mutate_bytes(rng, entries[name])
        return _archive(entries), f"{name}: {what}"
    if roll < 0.9:
        name = next(name for name in entries if "/data/" in name)
        entries[name] = bytes(rng.choice((1 << 20, 48 << 20)))
        return _archive(entries, zipfile.ZIP_DEFLATED), f"{name}: {len(entries[name])} bytes, deflated"
    return _lying_sizes(rng, data)


def _archive(entries: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", how) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content, how)
    return stream.getvalue()


def _lying_sizes(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Sizes in the archive's directory, at random."""
    changed, at, done = bytearray(data), 0, 0
    while (at := data.find(b"PK\x01\x02", at)) >= 0:
        if rng.random() < 0.4:
            struct.pack_into("<I", changed, at + rng.choice((20, 24, 42)), integer(rng) % 2**32)
            done += 1
        at += 4
    return bytes(changed), f"{done} sizes of the directory lie"


def _hostile(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    makers: tuple[Callable[[random.Random, bytes], tuple[bytes, str]], ...] = (_call, _call, _spread, _memo, _numbers)
    return rng.choice(makers)(rng, data)


def _call(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    module, name, argument = rng.choice(_CALLS)
    words = b"X" + struct.pack("<I", len(argument)) + argument.encode()
    how = rng.choice(("reduce", "stack", "inst", "build"))
    if how == "stack":
        called = _short(module) + _short(name) + b"\x93" + words + b"\x85R."
    elif how == "inst":
        called = b"(" + words + f"i{module}\n{name}\n".encode() + b"."
    elif how == "build":
        called = f"c{module}\n{name}\n".encode() + b")\x81}" + words + b"Nsb."
    else:
        called = f"c{module}\n{name}\n".encode() + words + b"\x85R."
    return b"\x80\x04" + called, f"calls {module}.{name} ({how})"


def _short(word: str) -> bytes:
    return b"\x8c" + bytes([len(word)]) + word.encode()


def _spread(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """A tensor of a few bytes with strides of 0, so that it claims a size of terabytes."""
    side = rng.choice((1 << 15, 1 << 17, 1 << 20, 1 << 40))
    length = 1 << 6

    def whole(number: int) -> bytes:
        body = number.to_bytes(9, "little", signed=True)
        return b"\x8a\x09" + body

    size = whole(side) + whole(side) + b"\x86"
    strides = rng.choice((b"K\x00K\x00\x86", b"K\x01K\x00\x86", whole(-1) + b"K\x00\x86"))
    storage = _STORAGE + whole(length) + b"tQ"
    names = [f"model.layers.{layer}.self_attn.{letter}_proj.weight" for layer in range(2) for letter in "qk"]
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + size + strides
    tensor += b"\x89ccollections\nOrderedDict\n)RtR"
    items = b"".join(b"X" + struct.pack("<I", len(name)) + name.encode() + tensor + b"s" for name in names)
    return b"\x80\x02}" + items + b".", f"tensors of {side} x {side} on {length} numbers"


def _memo(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Lists of lists of themselves, a million opcodes, huge memo places, a stack that runs empty."""
    which = rng.choice(("doubling", "deep", "empty", "place", "bytearray"))
    bodies = {
        "doubling": b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(60)),
        "deep": b"(" * 200_000 + b"t" * 200_000,
        "empty": rng.choice((b"R.", b"s.", b"u.", b"b.", b"\x85", b"0", b"t", b"Q", b"a")),
        "place": b"Nr\xff\xff\xff\x7fj\xff\xff\xff\x7f",
        "bytearray": b"cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R",
    }
    return b"\x80\x02" + bodies[which] + b".", f"memo: {which}"


def _numbers(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Sizes, strides and offsets of the tensors as other numbers; names as other names."""
    changed, done = bytearray(data), 0
    for place in range(len(data) - 2):
        if data[place] in b"KM" and rng.random() < 0.05:
            changed[place + 1] = rng.randrange(256)
            done += 1
    new = bytes(changed)
    if rng.random() < 0.3:
        new = new.replace(
            b"FloatStorage", rng.choice((b"LongStorage", b"ByteStorage", b"QInt8Storage", b"HalfStorage"))
        )
    if rng.random() < 0.2:
        new = new.replace(b"q_proj", text(rng).encode("utf-8", "ignore")[:6].ljust(6, b"x"))
    return new, f"{done} numbers of the pickle"
