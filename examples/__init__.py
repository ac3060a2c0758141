"""Recipes to copy: each is a folder, and what they have in common is in shared/."""
