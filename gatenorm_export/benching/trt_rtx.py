"""TensorRT-RTX: engines that are built without a GPU and finished on the one they are loaded on."""

from __future__ import annotations

from typing import ClassVar

from gatenorm_export.benching.trt import TensorRT
from gatenorm_export.building.flavours import FlavourName


class TensorRTRTX(TensorRT):
    """The same calls under another name. Its kernels are compiled at the first calls of a shape, which warm up."""

    flavour_name: ClassVar[FlavourName] = "tensorrt-rtx"
