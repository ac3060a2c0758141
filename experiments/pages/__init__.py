"""The passages of README.md and docs/ that a program writes: tables, lists and numbers, from code and from results."""
