"""One step: tensors grouped into buckets with a backend each, and the plan that the next step takes over."""
