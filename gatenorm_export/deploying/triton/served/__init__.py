"""What runs inside Triton's Python backend. Copied into the model repository as it is, so it needs no gatenorm there.

Files here import each other, the standard library, numpy, tokenizers, and onnxruntime or TensorRT, and nothing else; a
test holds them to it.
"""
