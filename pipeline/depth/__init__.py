"""Functions on depth arrays and tensors: bins, depth probability maps, alignment, metrics."""
