"""Teachers that come as a network in a file: ONNX, LiteRT, TorchScript."""
