"""TensorRT engines from ONNX graphs."""

from gatenorm_export.building.build_cache import BuildCache, default_cache
from gatenorm_export.building.build_plan import BuildOptions
from gatenorm_export.building.engines import build_engine, check_place
from gatenorm_export.building.flavours import Flavour, find_flavour
from gatenorm_export.building.gpus import Gpu, find_gpu
from gatenorm_export.building.opening import check_pair, check_runnable, check_version, open_engine, read_engine
from gatenorm_export.building.profile_files import load_overrides
from gatenorm_export.building.profiles import make_profiles
from gatenorm_export.building.shapes import ShapeRequest, check_shapes, settle_shapes

__all__ = [
    "BuildCache",
    "BuildOptions",
    "Flavour",
    "Gpu",
    "ShapeRequest",
    "build_engine",
    "check_pair",
    "check_place",
    "check_runnable",
    "check_shapes",
    "check_version",
    "default_cache",
    "find_flavour",
    "find_gpu",
    "load_overrides",
    "make_profiles",
    "open_engine",
    "read_engine",
    "settle_shapes",
]
