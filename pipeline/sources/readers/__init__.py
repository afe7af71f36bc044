"""Readers of the file formats that images, depth and tables come in."""
