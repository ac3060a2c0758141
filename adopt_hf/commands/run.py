"""Run a script as `python` would, or a command, with `optim="adopt"` registered in each Python that it starts."""

import argparse
import contextlib
import importlib.machinery
import importlib.util
import os
import shutil
import signal
import sys
import types
from collections.abc import Callable, Iterator
from traceback import walk_tb
from typing import Any, NoReturn

# In front of PYTHONPATH, the sitecustomize.py of this folder registers the names in every Python that starts.
STARTUP = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "startup")

Error = Callable[[str], NoReturn]


def own_words(words: list[str]) -> int:
    """Return how many of the words after `run` are its own. What comes after is the script's, options and all."""
    return 2 if words[:1] in (["-m"], ["--"]) else 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `adopt-hf run` takes."""
    parser.add_argument("-m", dest="module", action="store_true", help="WHAT is a module name, as in python -m")
    parser.add_argument("script", metavar="WHAT", help="a Python script, a command such as trl, or a module")


def main(options: argparse.Namespace, rest: list[str], parser: argparse.ArgumentParser) -> None:
    """Run the script, the module or the command with the arguments `rest`."""
    os.environ["PYTHONPATH"] = os.pathsep.join(python_paths(os.environ.get("PYTHONPATH", "")))
    start = run_module if options.module else run_script if is_script(options.script) else run_command
    start(options.script, rest, error=parser.error)


def python_paths(before: str) -> list[str]:
    """Return the entries of PYTHONPATH with ours in front, once. An empty entry stays: it is the current folder."""
    entries = before.split(os.pathsep) if before else []
    return [STARTUP, *(entry for entry in entries if entry != STARTUP)]


def is_script(what: str) -> bool:
    """Return whether Python is to read the file `what`. What else a shell can find is a command."""
    has_name = what.endswith((".py", ".pyw"))
    if shutil.which(what) is None:
        return has_name or os.path.exists(what)
    return has_name and os.path.isfile(what)


def run_command(name: str, args: list[str], error: Error) -> None:
    """Replace this process by the command, as a shell's `exec` does: exit codes and signals are the command's.

    Args:
        error: called with a one-line message where there is no such command, or where it cannot be executed.
    """
    path = shutil.which(name)
    if path is None:
        error(f"{name!r} is neither a command on the PATH nor a file; a module needs -m in front of its name")
    sys.stdout.flush()
    sys.stderr.flush()
    for ignored in ("SIGPIPE", "SIGXFSZ"):  # by Python, for itself; exec would pass it on
        if hasattr(signal, ignored):
            signal.signal(getattr(signal, ignored), signal.SIG_DFL)
    try:
        os.execv(path, [name, *args])
    except OSError as reason:
        error(f"the command {path!r} cannot be executed ({reason.strerror}); a script without #! needs a name in .py")


def run_script(path: str, args: list[str], error: Error) -> None:
    """Do what `python path args...` does.

    Args:
        error: called with a one-line message where there is no such script.
    """
    if os.path.isdir(path):
        error(f"{path!r} is a folder: write the name of the script in it, or -m and the name of a module")
    if not os.path.isfile(path):
        error(f"can't open file {path!r}: no such file; a module needs -m in front of its name")
    with open(path, "rb") as file:
        source = file.read()
    if not getattr(sys.flags, "safe_path", False):  # python -P; from 3.11 on
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    main = types.ModuleType("__main__")
    full_path = os.path.join(os.getcwd(), path)  # not tidied up: this is what python has in __file__ and tracebacks
    main.__file__ = full_path
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", full_path)
    vars(main)["__cached__"] = None
    _execute(lambda: compile(source, full_path, "exec", dont_inherit=True), main, [path, *args])


def run_module(name: str, args: list[str], error: Error) -> None:
    """Do what `python -m name args...` does.

    Args:
        error: called with a one-line message where there is no such module.
    """
    sys.argv = ["-m", *args]  # as python has it while it looks for the module
    with _only_frames_of_others():
        spec = _find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = _find_spec(f"{name}.__main__")
        code = spec.loader.get_code(spec.name) if spec is not None and hasattr(spec.loader, "get_code") else None
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
    if name.startswith("."):  # relative to nothing
        return None
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError as missing:
        if missing.name and (name == missing.name or name.startswith(f"{missing.name}.")):
            return None
        raise


def _execute(compiled: Callable[[], Any], main: types.ModuleType, argv: list[str]) -> None:
    """Execute code as `__main__`."""
    sys.argv = argv
    sys.modules["__main__"] = main
    vars(main).setdefault("__annotations__", {})
    with _only_frames_of_others():
        exec(compiled(), main.__dict__)


@contextlib.contextmanager
def _only_frames_of_others() -> Iterator[None]:
    """Whatever is raised inside goes up, and is shown without the frames that lead here and those of this file."""
    try:
        yield
    except SystemExit:
        raise
    except BaseException:
        show = sys.excepthook

        def show_frames_of_others(kind: Any, value: BaseException, traceback: types.TracebackType | None) -> None:
            ours = [i for i, (frame, _) in enumerate(walk_tb(traceback)) if frame.f_code.co_filename == __file__]
            for _ in range(max(ours, default=-1) + 1):
                traceback = traceback.tb_next if traceback is not None else None
            show(kind, value.with_traceback(traceback), traceback)

        sys.excepthook = show_frames_of_others
        raise
