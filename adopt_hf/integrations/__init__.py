"""ADOPT in other people's frameworks: a wing or a file each, and what `import adopt_hf` puts in place and takes back.

It patches torch, transformers, accelerate and DeepSpeed. None of them but torch is imported for it: each is patched
when it has been imported.
"""

from collections.abc import Callable
from typing import NamedTuple

from adopt_hf.integrations import accelerate, guard
from adopt_hf.integrations.deepspeed import patches as of_deepspeed
from adopt_hf.integrations.patching import Patch
from adopt_hf.integrations.transformers import patches as of_transformers
from adopt_hf.integrations.transformers import registration as transformers
from adopt_hf.integrations.transformers.arguments import trainer_kwargs

__all__ = ["PATCHED", "Patched", "register", "register_on_import", "trainer_kwargs", "unregister"]


class Patched(NamedTuple):
    """A package that is patched."""

    patches: tuple[Patch, ...]
    mismatch: Callable[[], str | None]  # imports the package, and says why its version does not fit


PATCHED = {
    "torch": Patched(guard.PATCHES, lambda: None),
    "transformers": Patched(of_transformers.PATCHES, of_transformers.mismatch),
    "accelerate": Patched(accelerate.PACKAGE.patches, accelerate.PACKAGE.mismatch),
    "deepspeed": Patched(of_deepspeed.PATCHES, of_deepspeed.PACKAGE.mismatch),
}


def register() -> None:
    """Make `TrainingArguments(optim="adopt")` and `--optim adopt` mean ADOPT, and let accelerate and DeepSpeed keep it.

    `import adopt_hf` has arranged it already. This function imports the Trainer of transformers, so that an error comes
    at once. A second call does nothing. DeepSpeed is not imported by it.

    Raises:
        ImportError: transformers is not installed, too old, or has changed what this relies on; says which.
    """
    _register_others()
    reason = of_transformers.mismatch()
    if reason:
        raise ImportError(reason)
    transformers.register()


def unregister() -> None:
    """Undo `register()`, and what `import adopt_hf` has arranged: the other packages are as they were."""
    transformers.unregister()
    accelerate.unregister()
    of_deepspeed.unregister()
    guard.unregister()


def register_on_import() -> None:
    """Arrange `register()` for what has been imported or will be. An unfit transformers lets the names say why."""
    _register_others()
    transformers.register()


def _register_others() -> None:
    guard.register()
    accelerate.register()
    of_deepspeed.register()
