"""Planted faults, each with the tests that have to notice it: `make mutants`."""
