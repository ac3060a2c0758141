"""The fused kernel for CPUs: C, compiled where it is used."""
