"""ADOPT in other people's frameworks: a wing or a file each, and what `import adopt_hf` puts in place and takes back.

It patches torch, transformers, accelerate and DeepSpeed. None of them but torch is imported for it: each is patched
when it has been imported.
"""

from adopt_hf.integrations import accelerate, guard
from adopt_hf.integrations.after_import import when_imported_no_more
from adopt_hf.integrations.deepspeed import patches as deepspeed_patches
from adopt_hf.integrations.transformers import patches as transformers_patches
from adopt_hf.integrations.transformers import registration as transformers_registration
from adopt_hf.integrations.transformers.arguments import trainer_kwargs

__all__ = ["register", "register_on_import", "trainer_kwargs", "unregister"]


def register() -> None:
    """Make `TrainingArguments(optim="adopt")` and `--optim adopt` mean ADOPT, and let accelerate and DeepSpeed keep it.

    `import adopt_hf` has arranged it already. This function imports the Trainer of transformers, so that an error comes
    at once. A second call does nothing. DeepSpeed is not imported by it.

    Raises:
        ImportError: transformers is not installed, too old, or has changed what this relies on; says which.
    """
    _register_others()
    reason = transformers_patches.transformers_mismatch()
    if reason:
        raise ImportError(reason)
    transformers_registration._register_transformers()


def unregister() -> None:
    """Undo `register()`, and what `import adopt_hf` has arranged: the other packages are as they were."""
    for module, step in transformers_registration.STEPS.items():
        when_imported_no_more(module, step.undo)
    accelerate.unregister()
    deepspeed_patches.unregister()
    guard.unregister()


def register_on_import() -> None:
    """Arrange `register()` for what has been imported or will be. An unfit transformers lets the names say why."""
    _register_others()
    transformers_registration._register_transformers()


def _register_others() -> None:
    guard.register()
    accelerate.register()
    deepspeed_patches.register()
