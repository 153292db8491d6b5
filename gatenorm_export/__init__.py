"""gatenorm: pruned ONNX models and TensorRT engines from pretrained transformers, with proof of cost and gain."""

from importlib.metadata import version

__version__ = version("gatenorm")
__all__ = ["__version__"]
