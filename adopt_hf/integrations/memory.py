"""Alias of `adopt_hf.memory`, under a documented path."""

from adopt_hf.memory import Usage, state_bytes

__all__ = ["Usage", "state_bytes"]
