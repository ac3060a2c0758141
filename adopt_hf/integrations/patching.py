"""How a function of another package is replaced and put back, and whether its version fits."""

import functools
import importlib
import importlib.metadata
import inspect
import sys
from collections.abc import Callable
from typing import Any

Around = Callable[..., Any]  # around(original, *args, **kwargs): what is called in the place of the original


def wrap(owner: Any, name: str, around: Around) -> None:
    """Let `owner.name(...)` be `around(original, ...)`, for a function, a method or a static method. Twice is once.

    The wrapper of another copy of this module (of a notebook or a test runner that imports it again) is replaced.
    """
    found = inspect.getattr_static(owner, name)
    original: Any = found.__func__ if isinstance(found, staticmethod) else found
    if getattr(original, "_adopt_hf_wraps", None) is not None:
        if original.__code__.co_filename != __file__ or original.__globals__ is globals():
            return
        found = original._adopt_hf_wraps
        original = found.__func__ if isinstance(found, staticmethod) else found

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    wrapper._adopt_hf_wraps = found  # type: ignore[attr-defined]
    setattr(owner, name, staticmethod(wrapper) if isinstance(found, staticmethod) else wrapper)


def unwrap(owner: Any, name: str) -> None:
    """Undo `wrap`. RuntimeError if another library has wrapped the function since."""
    found = inspect.getattr_static(owner, name, None)
    wrapper = found.__func__ if isinstance(found, staticmethod) else found
    original = getattr(wrapper, "_adopt_hf_wraps", None)
    if original is None:
        return
    if wrapper.__code__.co_filename != __file__:  # functools.wraps has copied our mark to another's function
        raise RuntimeError(f"somebody else has wrapped {owner.__name__}.{name} since: undo that first")
    if any(vars(base).get(name) is original for base in getattr(owner, "__mro__", ())[1:]):
        delattr(owner, name)  # inherited
    else:
        setattr(owner, name, original)


def _version(package: str) -> str:
    return importlib.metadata.version(package)


def _is_older(installed: str, minimum: str) -> bool:
    from packaging.version import Version  # transformers, Accelerate and DeepSpeed depend on it, torch does not

    return Version(installed) < Version(minimum)


def import_failure(*modules: str) -> str | None:
    """Import `modules`. Return what went wrong, in one line, or None."""
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001  a dependency of another package can raise anything when it is imported
            return failure_of(module, error)
    return None


def failure_of(module: str, error: BaseException) -> str:
    """Return one line on the error that ended the import of `module`."""
    while error.__cause__ is not None:  # transformers wraps the error of a dependency in one of its own
        error = error.__cause__
    return f"{module} cannot be imported ({' '.join(f'{type(error).__name__}: {error}'.split())})"


def _parameters(owner: Any, name: str) -> list[str]:
    """The names of the parameters of `owner.name`; none if there is no such function."""
    function = getattr(owner, name, None)
    return list(inspect.signature(function).parameters) if inspect.isroutine(function) else []


def _in(module: str, name: str) -> Any:
    """Return `name` of a module, or None if one of them is not there: a test may have put a stand-in in its place."""
    return getattr(sys.modules.get(module), name, None)
