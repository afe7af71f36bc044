"""Export a student as an ONNX file, optionally quantized, or run it over a folder of images."""
