"""What a step of ADOPT costs, beside other optimizers and the memory's own speed: see docs/benchmarks.md."""
