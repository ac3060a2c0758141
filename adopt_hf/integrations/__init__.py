"""ADOPT in other people's frameworks, and the registration that `import adopt_hf` makes and `unregister` undoes.

Each framework has a wing or a file here. torch, transformers, Accelerate and DeepSpeed are patched. Only torch is
imported for it: each of the others is patched when it has been imported.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from adopt_hf.integrations import accelerate, ddp, guard, patching
from adopt_hf.integrations.deepspeed import patches as of_deepspeed
from adopt_hf.integrations.patching import Patch
from adopt_hf.integrations.transformers import patches as of_transformers
from adopt_hf.integrations.transformers import registration as transformers
from adopt_hf.integrations.transformers.arguments import trainer_kwargs

if TYPE_CHECKING:
    from adopt_hf.integrations.transformers.callback import AdoptMonitor

__all__ = ["PATCHED", "AdoptMonitor", "Patched", "register", "register_on_import", "trainer_kwargs", "unregister"]


class Patched(NamedTuple):
    """A package with functions that are replaced."""

    patches: tuple[Patch, ...]
    mismatch: Callable[[], str | None]  # imports the package, and returns why its version does not fit, or None


OF_TORCH = (*guard.PATCHES, *ddp.PATCHES)
PATCHED = {
    "torch": Patched(OF_TORCH, lambda: None),
    "transformers": Patched(of_transformers.PATCHES, of_transformers.mismatch),
    "accelerate": Patched(accelerate.PACKAGE.patches, accelerate.PACKAGE.mismatch),
    "deepspeed": Patched(of_deepspeed.PATCHES, of_deepspeed.PACKAGE.mismatch),
}


def register() -> None:
    """Register ADOPT's names with transformers, and make Accelerate and DeepSpeed keep ADOPT.

    `TrainingArguments(optim="adopt")` and `--optim adopt` then mean ADOPT. `import adopt_hf` has arranged this already.
    This function also imports the Trainer of transformers, so that an error comes at once. It does not import
    DeepSpeed. A second call does nothing.

    Raises:
        ImportError: If transformers is not installed, is too old, or has changed what ADOPT relies on. The message says
            which.
    """
    _register_others()
    reason = of_transformers.mismatch()
    if reason:
        raise ImportError(reason)
    transformers.register()


def unregister() -> None:
    """Undo `register()` and what `import adopt_hf` has arranged. The other packages are then as they were before."""
    transformers.unregister()
    accelerate.unregister()
    of_deepspeed.unregister()
    patching.uninstall(OF_TORCH)


def register_on_import() -> None:
    """Arrange `register()` for the packages that have been imported or will be.

    If the installed transformers does not fit, using one of ADOPT's names raises an error that says why.
    """
    _register_others()
    transformers.register()


def _register_others() -> None:
    patching.install(OF_TORCH)
    accelerate.register()
    of_deepspeed.register()


def __getattr__(name: str) -> Any:
    """Import AdoptMonitor when it is asked for, because its base class imports transformers."""
    if name == "AdoptMonitor":
        from adopt_hf.integrations.transformers.callback import AdoptMonitor

        return AdoptMonitor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
