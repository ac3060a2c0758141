"""Run somebody's script as `python` would, in a process where `optim="adopt"` is registered."""

import importlib.util
import os
import sys
import types
from collections.abc import Callable
from typing import Any, NoReturn

# A launcher starts processes of its own, in which nothing would be registered.
LAUNCHERS = {
    "accelerate": "accelerate launch -m adopt_hf run",
    "accelerate.commands.launch": "accelerate launch -m adopt_hf run",
    "accelerate.commands.accelerate_cli": "accelerate launch -m adopt_hf run",
    "torch.distributed.run": "torchrun -m adopt_hf run",
    "torch.distributed.launch": "torchrun -m adopt_hf run",
    "deepspeed.launcher.runner": "deepspeed --module adopt_hf run",
}

Error = Callable[[str], NoReturn]


def run_script(path: str, args: list[str], error: Error) -> None:
    """Do what `python path args...` does.

    Args:
        error: called with a one-line message where there is no such script.
    """
    if not os.path.isfile(path):
        error(f"can't open file {path!r}: no such file; for a module write: run -m {path}")
    with open(path, "rb") as file:
        source = file.read()
    if not getattr(sys.flags, "safe_path", False):  # python -P; from 3.11 on
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    main = types.ModuleType("__main__")
    main.__file__ = path
    _execute(lambda: compile(source, path, "exec"), main, [path, *args])


def run_module(name: str, args: list[str], error: Error) -> None:
    """Do what `python -m name args...` does.

    Args:
        error: called with a one-line message where there is no such module, or where it is a launcher.
    """
    if name in LAUNCHERS:
        error(f"{name} starts processes of its own: write '{LAUNCHERS[name]} SCRIPT ...' instead")
    sys.argv = ["-m", *args]  # as python has it while it looks for the module
    spec = _find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        name = f"{name}.__main__"
        spec = _find_spec(name)
    code = spec.loader.get_code(name) if spec is not None and hasattr(spec.loader, "get_code") else None
    if spec is None or code is None:
        error(f"no module named {name!r} that can be run")
    main = types.ModuleType("__main__")
    main.__file__ = spec.origin
    main.__spec__ = spec
    main.__loader__ = spec.loader
    main.__package__ = spec.parent
    vars(main)["__cached__"] = spec.cached
    _execute(lambda: code, main, [str(spec.origin), *args])


def _find_spec(name: str) -> Any:
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError as missing:
        if missing.name and (name == missing.name or name.startswith(f"{missing.name}.")):
            return None
        raise


def _execute(compiled: Callable[[], Any], main: types.ModuleType, argv: list[str]) -> None:
    """Execute code as `__main__`; whatever it raises goes up, and is shown without the frames of this file."""
    sys.argv = argv
    sys.modules["__main__"] = main
    try:
        exec(compiled(), main.__dict__)
    except SystemExit:
        raise
    except BaseException:
        show = sys.excepthook

        def show_scripts_frames(kind: Any, value: BaseException, traceback: types.TracebackType | None) -> None:
            while traceback is not None and traceback.tb_frame.f_globals is not main.__dict__:
                traceback = traceback.tb_next
            show(kind, value.with_traceback(traceback), traceback)

        sys.excepthook = show_scripts_frames
        raise
