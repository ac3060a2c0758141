"""The paper's experiments, rerun: `python -m examples.paper.all --quick`."""
