"""ONNX graph passes that find and remove attention sublayers."""
