"""Reading and writing golden JSON files, and comparing with them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
HOW = "If the change is on purpose, state it in CHANGELOG.md and run `python -m tests.golden`"


def read(name: str) -> Any:
    """Return the content of the golden file `name`.json."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def write(name: str, content: Any) -> None:
    """Write the golden file `name`.json, one value a line."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def difference(golden: Any, now: Any, where: str = "") -> list[str]:
    """Return a line for each value that differs, in the order of the golden file."""
    if isinstance(golden, Mapping) and isinstance(now, Mapping):
        keys = [*golden, *(key for key in now if key not in golden)]
        return [
            line
            for key in keys
            for line in difference(golden.get(key, "nothing"), now.get(key, "nothing"), f"{where} > {key}".lstrip(" >"))
        ]
    if isinstance(golden, list) and isinstance(now, list) and len(golden) == len(now):
        pairs = enumerate(zip(golden, now, strict=True))
        return [line for i, (a, b) in pairs for line in difference(a, b, f"{where}[{i}]")]
    return [] if golden == now else [f"{where}\n  golden: {golden}\n  now:    {now}"]


def check(golden: Any, now: Any) -> None:
    """Raise AssertionError with every value that differs."""
    lines = difference(golden, now)
    assert not lines, "\n".join(["differs from the golden file:", *lines[:20], HOW])
