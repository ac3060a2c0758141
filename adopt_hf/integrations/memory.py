"""Another name of `adopt_hf.memory`, which earlier versions had and users import."""

from adopt_hf.memory import Usage, state_bytes

__all__ = ["Usage", "state_bytes"]
