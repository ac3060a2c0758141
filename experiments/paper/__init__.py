"""The paper's experiments, rerun: `python -m experiments paper --quick`."""
