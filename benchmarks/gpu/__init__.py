"""The sections of `python -m benchmarks.gpu_check`: what a GPU has to show before adopt_hf's GPU path is trusted."""
