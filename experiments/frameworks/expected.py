"""What a job must have done, and whether its records say so."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ADOPT, ADOPTW, ADAMW = "adopt_hf.optimizer.ADOPT", "adopt_hf.optimizer.ADOPTW", "torch.optim.adamw.AdamW"
STEPS, SAVED = 4, 2  # of a run, and at which it is saved

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Expected:
    """What the global step hook must have seen.

    Attributes:
        optimizer: The class that steps. Another one must not step at all. The rest is checked if it is one of ours.
        betas: Of every param group.
        eps: Of every param group.
        decay: The weight decay of the param groups that have tensors.
        processes: How many processes step.
        resumes: Whether the job resumes; the reason why not, if not.
    """

    optimizer: str = ADOPTW
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-6
    decay: tuple[float, ...] = (0.1, 0.0)
    processes: int = 1
    resumes: bool | str = True


def records(folder: Path) -> list[Record]:
    """Return the records of all processes of a run."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def differences(expected: Expected, whole: Sequence[Record], resumed: Sequence[Record]) -> list[str]:
    """Return a line for each thing that is not as expected; none if all is.

    Args:
        whole: The records of the run of STEPS steps.
        resumed: The records of the run that went on from the checkpoint of step SAVED.
    """
    found = _of_run(expected, whole, list(range(1, STEPS + 1)), "")
    if expected.resumes is True:
        found += _of_run(expected, resumed, list(range(SAVED + 1, STEPS + 1)), "after the checkpoint: ")
        if not found:
            ends = {steps[-1][1] for steps in (record["steps"] for record in (*whole, *resumed))}
            if len(ends) > 1:
                found.append(f"the resumed run ends with other parameters: {sorted(ends)}")
    return found


def _of_run(expected: Expected, seen: Sequence[Record], counts: list[int], where: str) -> list[str]:
    if len(seen) != expected.processes:
        return [f"{where}{len(seen)} optimizers have stepped instead of {expected.processes}: {_classes(seen)}"]
    found = []
    for record in seen:
        if record["class"] != expected.optimizer:
            found.append(f"{where}the optimizer: {record['class']} instead of {expected.optimizer}")
        if expected.optimizer not in (ADOPT, ADOPTW):
            continue
        groups = [group for group in record["groups"] if group["tensors"]]
        pairs = {
            "betas": ([tuple(group["betas"]) for group in groups], [expected.betas] * len(groups)),
            "eps": ([group["eps"] for group in groups], [expected.eps] * len(groups)),
            "weight decay": ([group["weight_decay"] for group in groups], list(expected.decay)),
            "the steps": ([int(count) for count, _ in record["steps"]], counts),
        }
        found += [f"{where}{name}: {is_} instead of {should}" for name, (is_, should) in pairs.items() if is_ != should]
    return found


def _classes(seen: Sequence[Record]) -> str:
    return ", ".join(record["class"] for record in seen) or "none"
