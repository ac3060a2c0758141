"""What `import adopt_hf` puts in place in transformers, accelerate and DeepSpeed, and takes back."""

from adopt_hf.integrations import accelerate, deepspeed, trainer


def register() -> None:
    """Make `TrainingArguments(optim="adopt")` and `--optim adopt` mean ADOPT, and let accelerate and DeepSpeed keep it.

    `import adopt_hf` does it as soon as they are imported. A second call does nothing. This one imports transformers.

    Raises:
        ImportError: transformers is not installed, too old, or has changed what this relies on; says which.
    """
    accelerate.register()
    deepspeed.register()
    trainer.register()


def unregister() -> None:
    """Undo `register()`: the other packages are as they were."""
    trainer.unregister()
    accelerate.unregister()
    deepspeed.unregister()


def register_on_import() -> None:
    """`register()` once the other packages are imported: it imports none of them."""
    accelerate.register()
    deepspeed.register()
    trainer.register_on_import()
