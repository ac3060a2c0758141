"""What `import adopt_hf` puts in place in torch, transformers, accelerate and DeepSpeed, and takes back."""

import importlib.util

from adopt_hf.integrations import accelerate, deepspeed, guard, trainer


def register() -> None:
    """Make `TrainingArguments(optim="adopt")` and `--optim adopt` mean ADOPT, and let accelerate and DeepSpeed keep it.

    `import adopt_hf` has done it already. A second call does nothing. accelerate and DeepSpeed are not imported by it.

    Raises:
        ImportError: transformers is not installed, too old, or has changed what this relies on; says which.
    """
    guard.register()
    accelerate.register()
    deepspeed.register()
    trainer.register()


def unregister() -> None:
    """Undo `register()`: the other packages are as they were."""
    trainer.unregister()
    accelerate.unregister()
    deepspeed.unregister()
    guard.unregister()


def register_on_import() -> None:
    """`register()`, but where transformers does not fit, the error comes when the name is used."""
    guard.register()
    accelerate.register()
    deepspeed.register()
    if _is_there("transformers"):
        trainer.register_on_import()


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a stand-in for the package, without a spec
        return False
