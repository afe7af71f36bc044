"""Mathematics of depth on arrays and tensors: bins, depth probability maps, alignment, metrics."""
