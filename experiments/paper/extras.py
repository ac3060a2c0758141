"""timm, which few recipes need: imported when one does."""

from types import ModuleType

from examples.shared.errors import InputError, one_line


def timm(what: str) -> ModuleType:
    """The package, with `timm.data` and `timm.utils`.

    Raises:
        InputError: If timm, or the torchvision that it needs, cannot be imported. The text says how to install them.
    """
    try:
        import timm
        import timm.data
        import timm.utils
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch is a RuntimeError
        raise InputError(
            f"{what} needs timm, and torchvision from where this torch is from: pip install -c constraints.txt timm "
            f"torchvision ({one_line(error)})"
        ) from None
    return timm
