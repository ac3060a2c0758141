"""Register ADOPT's names in every Python that has this folder on its path, when that Python imports transformers.

Python imports `sitecustomize` at its start. `adopt-hf run` puts this folder in front of PYTHONPATH. With
ADOPT_HF_REGISTER=1 the wheel's adopt_hf_register.pth puts it on the path. The Python that starts may be an old one and
may lack adopt_hf. Only modules that are in memory at its start are imported here.
"""

import os
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))
PACKAGE = os.path.dirname(FOLDER)
# DeepSpeed takes "ADOPT" in a config without transformers. Accelerate looks for `deepspeed` even if it is not used.
USERS = ("transformers.training_args", "deepspeed.runtime.engine")


class ImportAdopt:
    """Import adopt_hf when another module is looked for that adopt_hf patches at the end of its import."""

    adopt_hf_at_startup = True  # another copy of this file knows the finder by that name

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> object:
        """Return what the new hooks of adopt_hf find. Importlib, which is half way, would pass over some of them."""
        if name not in USERS:
            return None
        before = list(sys.meta_path)
        _import_adopt()
        new = [finder for finder in sys.meta_path if finder not in before]
        found = (finder.find_spec(name, path, target) for finder in new)  # type: ignore[arg-type]
        return next((spec for spec in found if spec is not None), None)


def _import_adopt() -> None:
    """Import adopt_hf if it is installed.

    Raises:
        ImportError: If it is of another version than this file.
    """
    try:
        import adopt_hf
    except (ImportError, OSError) as error:  # OSError: a library of torch
        sys.meta_path[:] = [finder for finder in sys.meta_path if not hasattr(finder, "adopt_hf_at_startup")]
        if getattr(error, "name", None) != "adopt_hf":
            _warn(error)
        return
    ours, theirs = _version(), getattr(adopt_hf, "__version__", None)
    if theirs not in (ours, None):  # None: another thread is importing it
        folder = os.path.dirname(os.path.abspath(str(adopt_hf.__file__)))
        raise ImportError(
            f"`adopt-hf run` was called with adopt_hf {ours} ({PACKAGE}), and {sys.executable}, which it has started, "
            f"has adopt_hf {theirs} ({folder}). Optimizers of two versions must not meet in one run. Install the same "
            f"version in both, or write `{sys.executable} -m adopt_hf run COMMAND`"
        )


def _version() -> str:
    with open(os.path.join(PACKAGE, "__init__.py"), encoding="utf-8") as file:
        return next(line.split('"')[1] for line in file if line.startswith("__version__"))


def _warn(error: Exception) -> None:
    import logging

    logging.getLogger("adopt_hf").warning(
        "optim='adopt' is unknown in this process: adopt_hf is installed for %s and cannot be imported (%s: %s)",
        sys.executable,
        type(error).__name__,
        error,
    )


def _import_the_next() -> None:
    """Import the sitecustomize that Python would have imported without this folder."""
    sys.path[:] = [entry for entry in sys.path if entry not in (FOLDER, os.path.dirname(__file__))]
    this = sys.modules.pop("sitecustomize")
    try:
        __import__("sitecustomize")
    except ImportError as error:
        if error.name != "sitecustomize":
            raise
        sys.modules["sitecustomize"] = this


if not any(hasattr(finder, "adopt_hf_at_startup") for finder in sys.meta_path):
    sys.meta_path.insert(0, ImportAdopt)  # type: ignore[arg-type]
_import_the_next()
if os.environ.get("ADOPT_HF_REGISTER", "") not in ("", "0", "1"):
    raise ValueError("ADOPT_HF_REGISTER must be 1 or 0, got " + repr(os.environ["ADOPT_HF_REGISTER"]))
