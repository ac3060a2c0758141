"""The launch modes that are tested, with their bounds, and the model whose optimizer state is counted."""
