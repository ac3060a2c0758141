"""The cost of a step of ADOPT next to other optimizers and the speed of memory: see docs/benchmarks.md."""
