"""A student leaves: as an ONNX file, checked and perhaps quantised; or run over a folder of images."""
