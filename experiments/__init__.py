"""What produced our numbers: benchmarks, the paper's experiments, and the passages of the pages made from them."""
