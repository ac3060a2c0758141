"""Fewer bits: the losses that training ends with, and how exactly the formats keep v."""
