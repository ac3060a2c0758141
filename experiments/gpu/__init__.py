"""The sections of `python -m experiments gpu_check`: what a GPU has to show before adopt_hf's GPU path is trusted."""
