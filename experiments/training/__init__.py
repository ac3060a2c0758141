"""Whole training steps: forward, backward, optimizer."""
