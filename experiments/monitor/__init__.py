"""The cost of observing a step."""
