"""Checkpoints as tables of tensors: safetensors, GGUF, pickled state dicts, ONNX graphs, local and remote."""

from gatenorm_export.checkpoints.tensors import StoredTensor, TensorInfo, TensorSource

__all__ = ["StoredTensor", "TensorInfo", "TensorSource"]
