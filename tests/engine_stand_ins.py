"""polygraphy runners that stand for an engine where there is no GPU: ONNX Runtime, right or wrong in one place."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.datatype import DataType

from gatenorm_export.sessions import open_session

Change = Callable[[OrderedDict[str, np.ndarray], int], None]


class StandIn(OnnxrtRunner):  # type: ignore[misc]
    """``graph`` on ONNX Runtime; ``change`` may spoil the outputs of call number ``n``. Profiles are only noted."""

    def __init__(self, graph: Path, change: Change | None = None) -> None:
        super().__init__(lambda: open_session(graph), name="stand-in")
        self._change, self._calls = change, 0
        self.profiles: list[int] = []

    def set_profile(self, index: int) -> None:
        self.profiles.append(index)

    def infer_impl(self, feed_dict: Any) -> Any:
        outputs = OrderedDict((name, np.array(value)) for name, value in super().infer_impl(feed_dict).items())
        if self._change is not None:
            self._change(outputs, self._calls)
        self._calls += 1
        return outputs


class HalfStandIn(StandIn):
    """A stand-in whose cache is in bfloat16, which numpy has no type for: tensors of torch go in and out."""

    def get_input_metadata_impl(self) -> Any:
        metadata = super().get_input_metadata_impl()
        for name, entry in metadata.items():
            if name.startswith("past"):
                entry.dtype = DataType.BFLOAT16
        return metadata

    def infer_impl(self, feed_dict: Any) -> Any:
        import torch

        assert all(isinstance(value, torch.Tensor) for value in feed_dict.values())
        wide = {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in feed_dict.items()}
        outputs = super().infer_impl({name: value.numpy() for name, value in wide.items()})
        return {
            name: torch.from_numpy(value).to(torch.bfloat16 if name.startswith("present") else torch.float32)
            for name, value in outputs.items()
        }
