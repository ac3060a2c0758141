"""timm, which few recipes need: imported when one does."""

from types import ModuleType

from experiments.harness.runs import InputError


def timm(what: str) -> ModuleType:
    """The package, with `timm.data` and `timm.utils`.

    Raises:
        InputError: it, or the torchvision it needs, cannot be imported; says that `what` wants it, and how to install.
    """
    try:
        import timm
        import timm.data
        import timm.utils
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch is a RuntimeError
        raise InputError(
            f"{what} needs timm, and torchvision from where this torch is from: pip install -c constraints.txt timm "
            f"torchvision ({' '.join(str(error).split())})"
        ) from None
    return timm
