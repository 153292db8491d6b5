"""TensorRT engines from ONNX graphs."""

from gatenorm_export.building.engines import build_engine
from gatenorm_export.building.flavours import Flavour, find_flavour
from gatenorm_export.building.profiles import ShapeRequest, make_profiles

__all__ = ["Flavour", "ShapeRequest", "build_engine", "find_flavour", "make_profiles"]
