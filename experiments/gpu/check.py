"""The record of a run: a verdict for each check, written as it is found, and the time that is left."""

import json
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from experiments.harness.fresh import one_line
from experiments.harness.pages import table

WORDS = {True: "PASS", False: "FAIL", None: "SKIP"}


class Verdict(NamedTuple):
    """One line of the table."""

    verdict: str  # PASS, FAIL or SKIP
    section: str
    name: str
    figure: str
    at: float  # seconds since the start


class Check:
    """The record that the sections write their verdicts to.

    Args:
        device: The device that is checked.
        dry: Whether this is a dry run in Triton's interpreter, on CPU tensors of toy size.
        path: The JSON file, rewritten after each verdict so that a run that is killed keeps what it has.
        budget: Seconds in which the run has to end.
        head: What the file says of the machine and the versions.
    """

    def __init__(self, device: torch.device, dry: bool, path: Path, budget: float, head: dict[str, Any]) -> None:
        self.device, self.dry, self.path, self.budget, self.head = device, dry, path, budget, head
        self.verdicts: list[Verdict] = []
        self.section = ""
        self._start = time.monotonic()
        self._lock = threading.Lock()

    def left(self) -> float:
        """Return the seconds until the budget is used up."""
        return self.budget - (time.monotonic() - self._start)

    def say(self, ok: bool | None, name: str, figure: object = "") -> None:
        """Print and write one verdict; None skips."""
        found = Verdict(WORDS[ok], self.section, name, str(figure), round(time.monotonic() - self._start, 1))
        with self._lock:
            self.verdicts.append(found)
            print(f"{found.verdict} {found.section}: {name}  {found.at:.0f}s  {figure}", flush=True)
            self.path.write_text(json.dumps(self._content(), indent=1) + "\n", encoding="utf-8")

    def run(self, sections: Sequence[Callable[["Check"], None]]) -> None:
        """Run the sections in order. One that raises is a FAIL, and the next one runs."""
        for section in sections:
            self.section = section.__name__
            if self.left() <= 0:
                self.say(None, "the whole section", "no time left")
                continue
            with self.attempt("the section ended with an error"):
                section(self)

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Turn an error within the block into a FAIL of `name`. The error ends only the block."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever is raised is a verdict
            traceback.print_exc()
            self.say(False, name, one_line(error)[:300])

    def skipped_for_time(self, name: str) -> bool:
        """Return whether there is no time left, and say a SKIP of `name` if so."""
        if self.left() > 0:
            return False
        self.say(None, name, "no time left")
        return True

    def skipped_when_dry(self) -> bool:
        """Return whether this is a dry run, and say a SKIP of the whole section if so."""
        if self.dry:
            self.say(None, "the whole section", "needs a GPU")
        return self.dry

    def synchronize(self) -> None:
        """Wait until the device has done what was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def failed(self) -> int:
        """Return the number of FAIL."""
        return sum(found.verdict == "FAIL" for found in self.verdicts)

    def table(self) -> str:
        """Return all verdicts as Markdown, the failed ones first."""
        order = sorted(self.verdicts, key=lambda found: found.verdict != "FAIL")
        return table(Verdict._fields, order)

    def summary(self) -> str:
        """Return the counts and the time in one line."""
        counts = [f"{sum(v.verdict == word for v in self.verdicts)} {word}" for word in ("PASS", "FAIL", "SKIP")]
        return f"{', '.join(counts)} in {self.budget - self.left():.0f} s of {self.budget:.0f}"

    def _content(self) -> dict[str, Any]:
        return {"benchmark": "gpu_check", **self.head, "checks": [found._asdict() for found in self.verdicts]}
