"""ONNX, run by onnxruntime: the target, what the runtime refuses, and its 8-bit form."""
