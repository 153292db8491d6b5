"""Numbers and texts that readers trip over."""

from __future__ import annotations

import random
import struct

INTEGERS = (
    *(0, 1, -1, 2, 3, 7, 100, 255, 256, 65535, 65536, 1_000_000, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 10**9, 2**40),
    *(2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**31), -(2**63), 10**30),
)
TEXTS = (
    *("", " ", ".", "..", "a", "A" * 200, "A" * 100_000, "\0", "a\0b", "\x1b[2J\x1b[31mred", "line\nline\r\tend"),
    *("[/red]", "[bold]", "[link=file:///etc/passwd]x[/link]", "<script>alert(1)</script>", "{{ 7*7 }}", "%s%n", "{0}"),
    *("\ud800", "\U0010ffff", "\u202eabc", "e\u0301", "0", "-1", "1e999", "NaN", "None", "true", "{layer}", "(a+)+$"),
    *("layers.99999999", "model.layers.0.self_attn.q_proj.weight", "LlamaForCausalLM", "onnx", "pruned", "exported"),
)
PATHS = (
    *("../outside/secret.json", "../outside/secret.bin", "../outside/secret.safetensors", "../outside/secret.onnx"),
    *("/etc/hostname", "/etc/passwd", "/proc/self/environ", "/proc/self/mem", "/dev/zero", "/dev/stdin", "/"),
    *("..", ".", "./model.onnx", "a/../../outside/secret.bin", "..\\outside\\secret.bin", "C:\\secret", "//host/share"),
    *("file:///etc/passwd", "https://127.0.0.1:9/x", "s3://bucket/x", "~/.ssh/id_rsa", "$HOME/x", "model.onnx", "in"),
)


def integer(rng: random.Random) -> int:
    """A number at an edge, or near one."""
    return rng.choice(INTEGERS) + rng.choice((0, 0, 0, 1, -1))


def text(rng: random.Random) -> str:
    """A text, or a path that leads out."""
    return rng.choice(PATHS if rng.random() < 0.4 else TEXTS)


def packed(rng: random.Random, code: str) -> bytes:
    """A hostile number in the width of a struct code, little-endian."""
    if code in "fd":
        return struct.pack("<" + code, rng.choice((float("nan"), float("inf"), -0.0, 1e308 if code == "d" else 3e38)))
    width = struct.calcsize("<" + code)
    return (integer(rng) % (1 << (8 * width))).to_bytes(width, "little")
