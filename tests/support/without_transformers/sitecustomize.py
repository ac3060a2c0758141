"""On PYTHONPATH, its folder hides transformers from a process as if it were not installed."""

import sys
from importlib.machinery import PathFinder


class WithoutTransformers(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "transformers" else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, context):
        return iter(()) if context.name == "transformers" else super().find_distributions(context)


sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTransformers
