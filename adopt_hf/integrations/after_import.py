"""Call a function when another package's module has been executed: now, after its import, or after a running one.

Importing transformers' Trainer or DeepSpeed takes seconds. A program that does not use them must not pay for that.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

Act = Callable[[], None]
Failed = Callable[[Exception], None]


def when_imported(module: str, act: Act, failed: Failed | None = None) -> None:
    """Call `act` now if `module` has been executed, and again after every later execution of it.

    The hook of an earlier call for this module is replaced. That includes the hook of another copy of this package.

    Args:
        module: Full name of a module. It is not imported.
        act: Function without arguments, called in the thread that imports the module. It must not raise.
        failed: Function that is called with the exception that ends an execution of the module.
    """
    when_imported_no_more(module)
    finder = _AfterImport(module, act, failed)
    sys.meta_path.insert(0, finder)
    found = sys.modules.get(module)
    if found is None:
        return
    if is_executing(module):
        _watch(found.__spec__, finder)
    else:
        act()


def when_imported_no_more(module: str, undo: Act | None = None) -> None:
    """Undo `when_imported`: no further call follows.

    If `module` has been executed, `undo` is called to take back what `act` has done.
    """
    sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, "adopt_hf_waits_for", None) != module]
    if undo is not None and is_executed(module):
        undo()


def is_executed(module: str) -> bool:
    """Return whether the import of `module` has finished."""
    return sys.modules.get(module) is not None and not is_executing(module)


def is_executing(module: str) -> bool:
    """Return whether this thread or another one is importing `module`."""
    return getattr(getattr(sys.modules.get(module), "__spec__", None), "_initializing", False) is True


class _AfterImport(importlib.abc.MetaPathFinder):
    """A finder that finds one module as the finders behind it do, and makes its loader call `act` at the end."""

    def __init__(self, module: str, act: Act, failed: Failed | None):
        self.adopt_hf_waits_for = self.module = module  # other copies of this package find it by that name
        self.act, self.failed = act, failed

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        finders = list(sys.meta_path)
        if name != self.module or self not in finders:
            return None
        behind = finders[finders.index(self) + 1 :]
        found = (finder.find_spec(name, path, target) for finder in behind if hasattr(finder, "find_spec"))
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None:
            self._hook(spec)
        return spec

    def _hook(self, spec: importlib.machinery.ModuleSpec) -> None:
        if spec.loader is None:
            return
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            try:
                execute(module)
            except BaseException as error:
                self.ended(error)
                raise
            self.ended(None)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]

    def ended(self, error: BaseException | None) -> None:
        """Call `act` or `failed` after an execution, unless this hook has been removed or replaced since."""
        if self not in sys.meta_path:
            return
        if error is None and self.module in sys.modules:
            self.act()
        elif isinstance(error, Exception) and self.failed is not None:  # an interrupt or an exit is no failure
            self.failed(error)


# -- ModuleSpec._initializing: the end of an import that is under way --------------------------------------------------
# Issue: a module that is being executed is in sys.modules and has only a part of its names. Its loader has been called,
#        so that no finder sees its end. adopt_hf is imported at such a moment by a plugin of Accelerate, or by a hook.
# Why:   importlib sets this attribute of the module's spec to False at the end, also after an error. importlib reads
#        the attribute itself to say "partially initialized module" (Python 3.5 to 3.14).
# Remove when: importlib can call back at the end of an import.


def _watch(spec: Any, finder: _AfterImport) -> None:
    """Make `finder` act at the end of the running import that `spec` belongs to, as if it had found the module."""
    finders: list[_AfterImport] | None = vars(spec).get("_adopt_hf_finders")
    if finders is None:
        finders = spec._adopt_hf_finders = []
        spec.__class__ = _watched(type(spec))
    finders.append(finder)
    if not is_executing(finder.module):  # another thread has ended it since the caller looked
        spec._initializing = False
        _end(finders)


def _watched(kind: type) -> type:
    """Return a subclass of `kind`. A spec of this class becomes a `kind` again at the end of its import."""

    class Watched(kind):  # type: ignore[misc]
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "_initializing" and not value:
                self.__class__ = kind
                _end(self.__dict__.pop("_adopt_hf_finders", []))

    return Watched


def _end(finders: list[_AfterImport]) -> None:
    """Remove each of the finders, and let it act."""
    while finders:
        try:
            finder = finders.pop()
        except IndexError:  # another thread has taken it
            return
        # importlib removes a module from sys.modules if its import fails
        finder.ended(None if finder.module in sys.modules else sys.exc_info()[1])
