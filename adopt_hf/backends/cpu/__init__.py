"""The fused kernel for CPUs: C source, compiled on the user's machine."""
