"""Run one graph through a fixed script of steps, whatever its inputs are called, and record what it answers.

The same script with the same tokens serves the pruned graph and its reference; each keeps a cache of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.matrix.answers import CACHE_ANSWER, Answer
from benchmarks.matrix.cache_names import CacheKey, CannotRun, cache_key, of_cross_attention
from benchmarks.matrix.models import D_MODEL, HEAD_SIZE, IMAGE_SIZE, VOCAB

Array = NDArray[Any]

BATCH = 2
# Row 0 of the batch starts with this many padded positions, where the graph takes a mask.
LEFT_PADDING = 3
# New tokens of each call: a prefill, a chunk onto the cache, two decode steps.
STEPS = (7, 3, 1, 1)
# What a graph that always needs a past starts from.
RANDOM_PAST = 5
ENCODER_LENGTH = 16
_ANSWERS = ("logits", "last_hidden_state", "pooler_output", "image_embeds", "hidden_states")
# What starts the name of a cache tensor in graphs that take no past.
_PRESENT = ("present", "cache", "past", "output.past")
_NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class Script:
    """Numbers of new tokens of each call, and how many random tokens the cache holds before the first."""

    steps: tuple[int, ...]
    start: int = 0
    left_padding: bool = True
    batch: int = BATCH
    # For caches whose last axis has no length in the graph.
    head_size: int = HEAD_SIZE


@dataclass
class Runner:
    """A session and the names of its ends, sorted by what they are.

    ``numbers`` renames layers in the cache names: after dense renumbering, name 0 may be layer 1.
    """

    session: Any
    numbers: tuple[int, ...] | None = None
    past: dict[str, CacheKey] = field(default_factory=dict)
    present: dict[str, CacheKey] = field(default_factory=dict)
    answers: tuple[str, ...] = ()
    plain: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, graph: Path | bytes, *, optimise: bool = True, numbers: tuple[int, ...] | None = None) -> Runner:
        """Open a graph on the CPU.

        Raises:
            CannotRun: the runtime refuses it.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            source = graph if isinstance(graph, bytes) else str(graph)
            session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            # onnxruntime's exceptions share no base class below Exception.
            raise CannotRun(first_line(error)) from error
        return cls(session, numbers)._sorted()

    def _sorted(self) -> Runner:
        inputs = {value.name: value for value in self.session.get_inputs()}
        outputs = [value.name for value in self.session.get_outputs()]
        self.past = self._cache([name for name in inputs if "past" in name.lower()])
        self.plain = {name: value for name, value in inputs.items() if name not in self.past}
        named = [name for name in outputs if name in _ANSWERS] or outputs[:1]
        caches = [name for name in outputs if name not in named and (self.past or name.startswith(_PRESENT))]
        self.answers = tuple(name for name in outputs if name not in caches)
        self.present = self._cache(caches)
        return self

    def _cache(self, names: list[str]) -> dict[str, CacheKey]:
        # Some exporters return the constants of a cache object beside its keys and values.
        found = {name: key for name in names if (key := cache_key(name))[1].endswith(("key", "value"))}
        if self.numbers is not None:
            own = {name: key for name, key in found.items() if not of_cross_attention(key)}
            unknown = [name for name, (layer, _) in own.items() if layer >= len(self.numbers)]
            if unknown:
                raise CannotRun(f"{unknown[0]}: not renumbered, {len(self.numbers)} layers keep a cache")
            found |= {name: (self.numbers[layer], part) for name, (layer, part) in own.items()}
        return found

    @property
    def cached_layers(self) -> tuple[int, ...]:
        """Layers whose own attention has a past or a present; a cross-attention's stays whatever is removed."""
        keys = [*self.past.values(), *self.present.values()]
        return tuple(sorted({key[0] for key in keys if not of_cross_attention(key)}))

    def script(self, *, left_padding: bool = True, batch: int = BATCH, head_size: int = HEAD_SIZE) -> Script:
        """The steps that fit the graph; those of a base graph serve its pruned ones, which may have no cache left."""
        of_encoder = any(of_cross_attention(key) for key in self.past.values())
        fixed = next((value.shape[1] for name, value in self.plain.items() if name == "input_ids"), None)
        steps: tuple[int, ...] = STEPS if self.past else (sum(STEPS),)
        start = 0
        if self.past and isinstance(fixed, int):
            steps, start = (fixed,) * 3, RANDOM_PAST
        elif of_encoder and not self._is_merged:
            # Whisper's decoder that continues from a cache takes one token at a time and cannot start from none.
            steps, start = (1, 1, 1), RANDOM_PAST
        return Script(steps, start, left_padding, batch, head_size)

    @property
    def _is_merged(self) -> bool:
        return "use_cache_branch" in self.plain

    def run(self, script: Script) -> list[Answer]:
        """Run every step and return the answers.

        Raises:
            CannotRun: a call fails, or an input is none that the driver knows.
        """
        rng = np.random.default_rng(7)
        if "pixel_values" in self.plain or "input_features" in self.plain:
            return [self._call(dict(self._media(rng, script.batch)), None)]
        seen = script.start
        # A merged decoder wants some past even where it does not read it.
        cache = self._start(1 if self._is_merged else seen, script.batch, script.head_size)
        tokens = rng.integers(3, VOCAB, (script.batch, seen + sum(script.steps)))
        mask = np.ones_like(tokens)
        if "attention_mask" in self.plain and script.left_padding:
            mask[0, :LEFT_PADDING] = 0
        states = rng.normal(size=(script.batch, ENCODER_LENGTH, D_MODEL))
        done: list[Answer] = []
        for index, new in enumerate(script.steps):
            valid = mask[:, seen : seen + new].astype(bool)
            feed = dict(self._tokens(tokens, mask, states, seen, new, first=index == 0), **cache)
            done.append(self._call(feed, valid, cache))
            seen += new
        return done

    def example(self, seed: int) -> dict[str, Array]:
        """Inputs of one call with a past that is not empty, for calibration."""
        rng = np.random.default_rng(seed)
        types = {value.name: _NUMPY_TYPES[value.type] for value in self.session.get_inputs()}
        seen, new = (RANDOM_PAST if self.past else 0), STEPS[0]
        tokens = rng.integers(3, VOCAB, (BATCH, seen + new))
        states = rng.normal(size=(BATCH, ENCODER_LENGTH, D_MODEL))
        if "pixel_values" in self.plain or "input_features" in self.plain:
            feed = dict(self._media(rng, BATCH))
        else:
            feed = dict(self._tokens(tokens, np.ones_like(tokens), states, seen, new, first=not seen))
        return {
            name: array.astype(types[name]) for name, array in {**feed, **self._start(seen, BATCH, HEAD_SIZE)}.items()
        }

    def _media(self, rng: np.random.Generator, batch: int) -> Iterator[tuple[str, Array]]:
        for name in self.plain:
            if name == "pixel_values":
                yield name, rng.normal(size=(batch, 3, IMAGE_SIZE, IMAGE_SIZE))
            elif name == "input_features":
                yield name, rng.normal(size=(batch, 8, 2 * ENCODER_LENGTH))
            else:
                raise CannotRun(f"the driver does not know the input {name}")

    def _tokens(
        self, tokens: Array, mask: Array, states: Array, seen: int, new: int, *, first: bool
    ) -> Iterator[tuple[str, Array]]:
        upto = mask[:, : seen + new]
        for name in self.plain:
            if name in ("input_ids", "decoder_input_ids"):
                yield name, tokens[:, seen : seen + new]
            elif name == "attention_mask":
                yield name, upto
            elif name == "position_ids":
                yield name, np.maximum(upto.cumsum(axis=1) - 1, 0)[:, seen:]
            elif name == "token_type_ids":
                yield name, np.zeros((len(tokens), new))
            elif name == "cache_position":
                yield name, np.arange(seen, seen + new)
            elif name == "encoder_hidden_states":
                yield name, states
            elif name == "use_cache_branch":
                yield name, np.array([not first])
            else:
                raise CannotRun(f"the driver does not know the input {name}")

    def _start(self, length: int, batch: int, head_size: int) -> dict[str, Array]:
        """A past of that many random tokens for each layer; the same for every graph that keeps the layer."""
        shapes = {value.name: value.shape for value in self.session.get_inputs()}
        cache = {}
        for name, (layer, part) in self.past.items():
            of_encoder = of_cross_attention((layer, part))
            unknown = [batch, 0, ENCODER_LENGTH if of_encoder else length, head_size]
            shape = [n if isinstance(n, int) else unknown[axis] for axis, n in enumerate(shapes[name])]
            seed = np.random.default_rng([layer, *part.encode()])
            cache[name] = seed.normal(size=shape)
        return cache

    def _call(
        self, feed: dict[str, Array], valid: NDArray[np.bool_] | None, cache: dict[str, Array] | None = None
    ) -> Answer:
        types = {value.name: _NUMPY_TYPES[value.type] for value in self.session.get_inputs()}
        typed: dict[str, Array] = {name: np.ascontiguousarray(array, dtype=types[name]) for name, array in feed.items()}
        try:
            results = self.session.run([*self.answers, *self.present], typed)
        except Exception as error:
            raise CannotRun(first_line(error)) from error
        named = dict(zip([*self.answers, *self.present], results, strict=True))
        if cache is not None:
            keys = {key: name for name, key in self.past.items()}
            for name, key in self.present.items():
                # A merged decoder hands back empty tensors for the encoder's cache, which does not change.
                if key in keys and named[name].size:
                    cache[keys[key]] = named[name]
        answers = {name: named[name] for name in self.answers}
        if not self.past:
            # Nothing reads these caches here, so they are compared themselves, positions before heads.
            for name, (layer, part) in self.present.items():
                answers[f"{CACHE_ANSWER}{layer} {part}"] = np.moveaxis(named[name], 2, 1)
        return Answer(answers, valid)


def first_line(error: BaseException) -> str:
    """An exception as one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]
