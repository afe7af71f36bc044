"""The losses' kernels for CUDA devices, in Triton."""
