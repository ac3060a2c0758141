"""Act when another package's module has been executed: at once, at its import, or when an import under way has ended.

Importing transformers' Trainer or DeepSpeed takes seconds, which a program that does not use them must not pay.
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
    """Call `act` now if `module` has been executed, and after every later execution of it.

    The hook of an earlier call for this module is replaced, one of another copy of this package too.

    Args:
        module: full name of a module, which is not imported.
        act: called without arguments, in the thread that imports the module. It must not raise.
        failed: called with the exception that ends an execution of the module.
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
    """Undo `when_imported`: no call follows. If `module` has been executed, `undo` takes back what `act` has done."""
    sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, "adopt_hf_waits_for", None) != module]
    if undo is not None and is_executed(module):
        undo()


def is_executed(module: str) -> bool:
    """Return whether `module` has been imported, to its end."""
    return sys.modules.get(module) is not None and not is_executing(module)


def is_executing(module: str) -> bool:
    """Return whether the import of `module` is under way, in this thread or in another one."""
    return getattr(getattr(sys.modules.get(module), "__spec__", None), "_initializing", False) is True


class _AfterImport(importlib.abc.MetaPathFinder):
    """Find one module as the finders behind this one do, and let its loader call `act` at the end."""

    def __init__(self, module: str, act: Act, failed: Failed | None):
        self.adopt_hf_waits_for = self.module = module  # other copies of this package know it by that name
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
        """Act on the end of an execution, unless `when_imported_no_more` or another hook has come in between."""
        if self not in sys.meta_path:
            return
        if error is None and self.module in sys.modules:
            self.act()
        elif isinstance(error, Exception) and self.failed is not None:  # an interrupt or an exit is no failure
            self.failed(error)


# -- ModuleSpec._initializing: the end of an import that is under way --------------------------------------------------
# Issue: a module that is being executed is in sys.modules and has only a part of its names. Its loader has been called,
#        so that no finder sees its end. adopt_hf is imported at such a moment by a plugin of accelerate, or by a hook.
# Why:   importlib sets this attribute of the module's spec to False at the end, whatever the end is. It reads it itself
#        to say "partially initialized module" (Python 3.5 to 3.14).
# Remove when: importlib can call back at the end of an import.


def _watch(spec: Any, finder: _AfterImport) -> None:
    """Let the end of the import that `spec` belongs to be that of one which `finder` has seen begin."""
    finders: list[_AfterImport] | None = vars(spec).get("_adopt_hf_finders")
    if finders is None:
        finders = spec._adopt_hf_finders = []
        spec.__class__ = _watched(type(spec))
    finders.append(finder)
    if not is_executing(finder.module):  # it has ended, in another thread, between the caller's look and this one
        spec._initializing = False
        _end(finders)


def _watched(kind: type) -> type:
    """Return a class derived from `kind`, of a spec that is a `kind` again at the end of the import."""

    class Watched(kind):  # type: ignore[misc]
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "_initializing" and not value:
                self.__class__ = kind
                _end(self.__dict__.pop("_adopt_hf_finders", []))

    return Watched


def _end(finders: list[_AfterImport]) -> None:
    """Call and forget the finders."""
    while finders:
        try:
            finder = finders.pop()
        except IndexError:  # another thread has taken it
            return
        finder.ended(None if finder.module in sys.modules else sys.exc_info()[1])  # importlib removes it if it fails
