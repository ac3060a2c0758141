"""The benchmarks, the paper's experiments, and the passages of the pages that are made from their results."""
