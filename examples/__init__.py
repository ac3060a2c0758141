"""Examples to copy: two quick starts, a file each, and two recipes, a folder each."""
