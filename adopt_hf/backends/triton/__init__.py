"""The fused kernels for NVIDIA GPUs, in Triton."""
