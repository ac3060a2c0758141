"""Call functions in a new process, which has clean memory and its own environment, and may crash."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from examples.shared import errors
from experiments.harness.machine import ROOT


def call(function: Callable[..., Any], environment: Mapping[str, str], **arguments: Any) -> Any:
    """Return what `function(**arguments)` returns in a new process, with `environment` added to this one's.

    Args:
        function: A function of a module of this package. Its arguments and its result are passed as JSON.

    Raises:
        RuntimeError: If it raised, or the process died. The message is one line that says which.
    """
    with tempfile.TemporaryDirectory(prefix="adopt_hf_benchmark_") as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "experiments.harness.fresh", function.__module__, function.__name__]
        # Compilers write to the standard output; it belongs to the table.
        done = subprocess.run(
            [*command, json.dumps(arguments), str(answer)],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
        )
        if not answer.exists():
            end = one_line(done.stderr)[-300:]
            raise RuntimeError(f"the process ended with {done.returncode}" + (f": {end}" if end else ""))
        said = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in said:
        raise RuntimeError(said["error"])
    return said["result"]


def one_line(text: object) -> str:
    """Return `text` without line breaks. For an exception, its type comes first."""
    return errors.one_line(f"{type(text).__name__}: {text}" if isinstance(text, BaseException) else text)


def _main(module: str, name: str, arguments: str, answer: str) -> None:
    function = getattr(importlib.import_module(module), name)
    try:
        said = {"result": function(**json.loads(arguments))}
    except Exception as error:  # noqa: BLE001 - whatever it is, the caller has to hear of it
        said = {"error": one_line(error)[:500]}
    Path(answer).write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
