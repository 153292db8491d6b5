"""How large the inputs of an engine may be: as asked, and as long as the model can read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gatenorm_export.building.position_tables import table_in_graph
from gatenorm_export.errors import RefusedError, UsageError
from gatenorm_export.genai_config import GENAI_CONFIG
from gatenorm_export.model_configs import CONFIG, configs_in
from gatenorm_export.progress import Progress, Quiet
from gatenorm_export.records import ModelSpec

DEFAULT_PROMPT, DEFAULT_CONTEXT = 512, 2048

SHARED_STEP = 2
"""The longest step of the decode profile. Of a step fixed to 1, TensorRT-RTX 1.7 lays the matrices out in another way
than for prefill and keeps both copies in the engine: 1,006.8 MB for SmolLM2-135M in fp32, where either profile alone
takes 560 MB. With a range of 1 to 2 both profiles share one copy: 582.4 MB."""


@dataclasses.dataclass(frozen=True)
class ShapeRequest:
    """The largest batch, the longest prompt, and the longest context (cache and new tokens), in tokens.

    ``context`` None is ``DEFAULT_CONTEXT``, or what the model takes where that is less; ``prompt`` None is
    ``DEFAULT_PROMPT``, or one token less than the context. ``decode_step`` is the longest step of the decode profile.
    ``SHARED_STEP`` is the least with which both profiles share the weights; 1 fixes the step, for kernels of one token,
    at the cost of a second copy of the matrices.
    """

    batch: int = 1
    prompt: int | None = None
    context: int | None = None
    decode_step: int = SHARED_STEP

    def __post_init__(self) -> None:
        given = (("batch", self.batch, 1), ("prompt", self.prompt, 1), ("context", self.context, 2))
        for what, value, least in (*given, ("decode step", self.decode_step, 1)):
            if value is not None and value < least:
                raise UsageError(f"a {what} of {value} is too small for an engine; it starts at {least}")
        if self.context is None:
            return
        for what, value in (("prompt", self.prompt), ("decode step", self.decode_step)):
            # A step is put onto a cache, a prompt need not be.
            if value is not None and value + (what == "decode step") > self.context:
                raise UsageError(f"a {what} of {value} tokens does not fit a context of {self.context}")


@dataclasses.dataclass(frozen=True)
class ContextLimit:
    """How many tokens a model takes. ``table``: nothing can be read beyond; else it is what the model was made for."""

    tokens: int
    table: bool
    source: str

    def __str__(self) -> str:
        what = "has a table of {} positions" if self.table else "was made for {} tokens"
        return f"the model {what.format(f'{self.tokens:,}')} ({self.source})"


def context_limit(model: Path) -> ContextLimit | None:
    """What the configs in a checkpoint's folder or beside a graph say, or else a table of positions in the graph.

    Raises:
        InputError: a config is no JSON object, or the graph cannot be read.
    """
    folder = model if model.is_dir() else model.parent
    configs = configs_in(folder)
    table, most = configs.table_of_positions, configs.max_positions
    if most is None and table is None and not model.is_dir():
        rows = table_in_graph(model)
        return ContextLimit(rows, table=True, source="told by the graph") if rows is not None else None
    source = CONFIG if (folder / CONFIG).is_file() else GENAI_CONFIG
    if table is not None:
        return ContextLimit(table, table=True, source=source)
    return ContextLimit(most, table=False, source=source) if most is not None else None


def settle_shapes(model: Path, request: ShapeRequest, progress: Progress | None = None) -> ShapeRequest:
    """The request with prompt and context as numbers, within what a decoder takes: a graph, or a checkpoint's folder.

    Where the model takes less than was not asked for, or more was asked for than it was made for, ``progress`` says so.

    Raises:
        RefusedError: more is asked for than there are positions in a table.
        InputError: see :func:`context_limit`.
    """
    progress = progress or Quiet()
    limit = context_limit(model)
    context, prompt = request.context, request.prompt
    if context is None:
        context = DEFAULT_CONTEXT if limit is None else min(DEFAULT_CONTEXT, limit.tokens)
        if prompt is not None and prompt > context:
            why = f", since {limit}" if limit is not None and limit.tokens == context else ""
            longer = "" if why and limit is not None and limit.table else "; ask for a longer context too"
            raise RefusedError(
                f"{model}: a prompt of {prompt:,} tokens does not fit a context of {context:,}{why}{longer}"
            )
        if context < DEFAULT_CONTEXT:
            progress.say(f"{model}: a context of {context:,} tokens, since {limit}")
    elif limit is not None and context > limit.tokens:
        if limit.table:
            raise RefusedError(
                f"{model}: a context of {context:,} tokens is too long: {limit}, and an engine would read beyond it; "
                f"ask for {limit.tokens:,} at most"
            )
        progress.say(f"{model}: a context of {context:,} tokens as asked, although {limit}")
    if prompt is None:
        prompt = min(DEFAULT_PROMPT, context - 1)
    return dataclasses.replace(request, prompt=prompt, context=context)


def check_shapes(spec: ModelSpec, request: ShapeRequest) -> None:
    """Refuse engines that a checkpoint's model cannot fill, as far as its folder tells, before it is exported.

    Raises:
        RefusedError, InputError: see :func:`settle_shapes`.
    """
    # Beside a single file nothing need be its own; the graph is asked before the build.
    if Path(spec.path).is_dir():
        settle_shapes(Path(spec.path), request)
