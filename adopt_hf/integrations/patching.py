"""Replace functions of other packages, and put them back. Every replacement is a row, a `Patch`.

The rows are in `transformers/patches.py`, `deepspeed/patches.py`, `accelerate.py`, `guard.py` and `ddp.py` (torch). The
check of a version, `python -m adopt_hf env` and the table in docs/integrations.md are views of the rows.
"""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

Around = Callable[..., Any]  # around(original, *args, **kwargs): what is called instead of the original


@dataclass(frozen=True)
class Patch:
    """A replacement of a function, a method or a static method of another package.

    Args:
        target: The module, a colon and the name in it, as in "transformers.trainer:Trainer._load_best_model".
        around: Called as `around(original, *args, **kwargs)` instead of the function.
        takes: The parameters that the function must have for the patch to fit, written as in a `def`. The first ones
            must have this order. Those behind a "*" may stand anywhere. If `around` takes no other arguments, the
            function may have no other parameters.
        issue: What goes wrong without the patch.
        why: The reason for replacing this function and no other.
        remove_when: The change of the other package that makes the patch unnecessary.
        optional: Whether ADOPT works without the patch. The patch is left out if the function differs or does not
            exist.
        unneeded: Whether the installed version makes the patch unnecessary. It is then left out. Default: never.
        asks: Whether an argument of a call asks for ADOPT. In a version that does not fit, a call with such an argument
            raises ImportError. Default: the function is unchanged in such a version.
    """

    target: str
    around: Around
    takes: str
    issue: str
    why: str
    remove_when: str
    optional: bool = False
    unneeded: Callable[[], bool] = lambda: False
    asks: Callable[[Any], bool] | None = None

    @property
    def module(self) -> str:
        """The full name of the module that has the function."""
        return self.target.partition(":")[0]

    @property
    def name(self) -> str:
        """The full name of the function, for error messages."""
        return self.target.replace(":", ".")

    def mismatch(self) -> str | None:
        """Return why the patch does not fit the function that is there, or None. Imports nothing."""
        owner, name = self._place()
        function = _function(owner, name)
        if not inspect.isroutine(function):
            return "there is no such function"
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except ValueError:  # a C function without a text signature
            return "its parameters cannot be seen"
        there = [parameter.name for parameter in parameters]
        first, _, others = (part.replace(",", " ").split() for part in self.takes.partition("*"))
        fits = there[: len(first)] == first and {*others} <= {*there}
        if fits and (_takes_anything(self.around) or len(there) == len(first)):
            return None
        return f"it takes ({', '.join(there)}) and not ({self.takes})"

    def is_installed(self) -> bool:
        """Return whether the function is replaced, by this copy of the package or by another one."""
        return hasattr(_function(*self._place()), "_adopt_hf_wraps")

    def _place(self) -> tuple[Any, str]:
        """Return the module or class that has the function, or None if it does not exist, and the name there."""
        *path, name = self.target.partition(":")[2].split(".")
        owner: Any = sys.modules.get(self.module)  # a test may have put a stand-in there
        for one in path:
            owner = getattr(owner, one, None)
        return owner, name


class Package(NamedTuple):
    """A package with functions that are replaced.

    Args:
        name: The name of the package, for messages and for pip.
        minimum: The oldest version that fits.
        use: The subject of an error message: what needs the package.
        patches: The rows of the package.
        changed: Function that returns the name of anything else that the patches rely on and that has changed, or None.
    """

    name: str
    minimum: str
    use: str
    patches: tuple[Patch, ...]
    changed: Callable[[], str | None] = lambda: None

    def too_old(self, installed: str) -> str | None:
        """Return why the version `installed` is too old, or None."""
        from packaging.version import Version  # transformers, Accelerate and DeepSpeed depend on it, torch does not

        if Version(installed) < Version(self.minimum):
            return (
                f"{self.use} needs {self.name} {self.minimum} or later, and {installed} is installed: "
                f"pip install --upgrade {self.name}"
            )
        return None

    def mismatch(self) -> str | None:
        """Return why the patches do not fit the installed version, or None. Imports the package."""
        installed = getattr(importlib.import_module(self.name), "__version__", None)
        old = self.too_old(installed) if installed is not None else None
        return old or says_changed(
            self.name, installed or "of unknown version", changed(self.patches) or self.changed()
        )


def says_changed(package: str, installed: str, name: str | None) -> str | None:
    """Return the error message about `name`, which `package` has changed, or None if `name` is None."""
    return name and (
        f"{package} {installed} has changed {name}, which adopt_hf relies on: update adopt_hf, or install an earlier "
        f"{package}"
    )


def changed(patches: Iterable[Patch]) -> str | None:
    """Return the name of the first function that ADOPT needs and that has changed, or None."""
    needed = (patch for patch in patches if not patch.optional and not patch.unneeded())
    return next((patch.name for patch in needed if patch.mismatch()), None)


def install(patches: Iterable[Patch], reason: str | None = None) -> None:
    """Replace the functions of `patches`. A second call does nothing.

    Args:
        patches: Rows of modules that have been imported. `changed` has returned None for them, or there is a reason.
        reason: Why the package does not fit. Only the rows with `asks` are then installed, and raise it.
    """
    for patch in patches:
        owner, name = patch._place()
        if reason is None and patch.mismatch() is None and not patch.unneeded():
            _wrap(owner, name, patch.around)
        elif reason is not None and patch.asks is not None and inspect.isroutine(_function(owner, name)):
            _wrap(owner, name, functools.partial(_refuse, patch.asks, reason))


def uninstall(patches: Iterable[Patch]) -> None:
    """Put the functions of `patches` back.

    Raises:
        RuntimeError: If another library has wrapped one of them since.
    """
    for patch in patches:
        _unwrap(*patch._place())


def _refuse(asks: Callable[[Any], bool], reason: str, original: Any, *args: Any, **kwargs: Any) -> Any:
    if any(map(asks, (*args, *kwargs.values()))):
        raise ImportError(reason)
    return original(*args, **kwargs)


def _wrap(owner: Any, name: str, around: Around) -> None:
    """Make `owner.name(...)` call `around(original, ...)`. A second call does nothing.

    The wrapper of another copy of this module is replaced. A notebook or a test runner that imports the package again
    makes such a copy.
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


def _unwrap(owner: Any, name: str) -> None:
    """Undo `_wrap`. Raise RuntimeError if another library has wrapped the function since."""
    found = inspect.getattr_static(owner, name, None)
    wrapper = found.__func__ if isinstance(found, staticmethod) else found
    original = getattr(wrapper, "_adopt_hf_wraps", None)
    if original is None:
        return
    if wrapper.__code__.co_filename != __file__:  # functools.wraps has copied the mark to another wrapper
        raise RuntimeError(
            f"another library has wrapped {owner.__name__}.{name} since adopt_hf replaced it, so that the original "
            "cannot be put back: undo the other wrapper first"
        )
    if any(vars(base).get(name) is original for base in getattr(owner, "__mro__", ())[1:]):
        delattr(owner, name)  # inherited
    else:
        setattr(owner, name, original)


def _function(owner: Any, name: str) -> Any:
    """Return the function as it was written, with its parameter `self` or `cls`, or None if there is none."""
    found = inspect.getattr_static(owner, name, None)
    return found.__func__ if isinstance(found, staticmethod | classmethod) else found


def _takes_anything(around: Around) -> bool:
    kinds = {parameter.kind for parameter in inspect.signature(around).parameters.values()}
    return bool(kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD})


def import_failure(*modules: str) -> str | None:
    """Import `modules`. Return the error in one line, or None."""
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
