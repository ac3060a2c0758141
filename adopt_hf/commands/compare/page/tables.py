"""The tables of the page, and how it was made."""

import shlex
from collections.abc import Mapping
from html import escape
from typing import Any

from adopt_hf.commands.compare import spikes, table
from adopt_hf.commands.compare.page.figures import key
from adopt_hf.commands.compare.page.marked import Marked
from adopt_hf.commands.compare.page.sections import ms, steps
from adopt_hf.commands.compare.plan import lr_text
from adopt_hf.commands.compare.verdict import loss_name, number, percent

SHORT = 32  # characters of a word that fits on a line of a phone


def numbers(found: Mapping[str, Any], marked: Marked) -> str:
    """Return the table of all settings."""
    head = ["optimizer", "learning rate", "runs", "final", "best", f"steps to {found['reference']}", "ms a step"]
    head += ["peak memory", "spikes"]
    rows = []
    for i, one in enumerate(found["settings"]):
        path = f"settings.{i}"
        runs = f"{marked(f'{path}.finished')} of {marked(f'{path}.planned')}"
        runs += f', <span class="bad">{marked(f"{path}.failed")} failed</span>' if one["failed"] else ""
        final = marked.mean(f"{path}.final", number)
        if one["diverged"]:
            final = f'<span class="bad">{marked(f"{path}.diverged")} diverged</span>'
        reached = marked(f"{path}.steps_to_reference", steps)
        if one["reached"] and one["reached"] < one["targets"]:
            reached += f" <small>({marked(f'{path}.reached')} of {marked(f'{path}.targets')})</small>"
        values = [f"{key(found, one['optim'])}{escape(one['optim'])}", marked(f"{path}.lr", lr_text), runs, final]
        values += [marked.mean(f"{path}.best", number), reached, marked.mean(f"{path}.step_ms", ms)]
        values += [marked(f"{path}.peak_bytes", table.memory), marked(f"{path}.spikes")]
        rows.append(_table_row(head, values))
    said = "".join(
        f"<p>{escape(text)}</p>" for text in table.notes({**found, "plan": {**found["plan"], "sweep": False}})
    )
    return f'<section id="numbers"><h2>In numbers</h2>{_table(head, rows)}<div class="muted">{said}</div></section>\n'


def runs(found: Mapping[str, Any], marked: Marked) -> str:
    """Return the table of all runs, with the last lines of those that have failed."""
    head = [
        "optimizer",
        "learning rate",
        "seed",
        "state",
        "final",
        "best",
        "steps",
        "ms a step",
        "peak memory",
        "spikes",
    ]
    rows = []
    for i, run in enumerate(found["runs"]):
        path = f"runs.{i}"
        values = [
            f"{key(found, run['optim'])}{escape(run['optim'])}",
            marked(f"{path}.lr", lr_text),
            marked(f"{path}.seed"),
        ]
        if run["status"] != "finished":
            state = (
                f"failed, exit code {marked(f'{path}.exit_code')}" if run["status"] == "failed" else "not finished yet"
            )
            values += [f'<span class="bad">{state}</span>' if run["status"] == "failed" else state, *["-"] * 6]
            rows.append(_table_row(head, values))
            if run["status"] == "failed":
                lines = escape("\n".join(run["last_lines"])) or "It printed nothing."
                rows.append(f'<tr class="lines"><td colspan="{len(head)}"><pre>{lines}</pre></td></tr>')
            continue
        final = marked(f"{path}.final", number, "diverged")
        values += ["finished", final, marked(f"{path}.best", number), marked(f"{path}.steps", steps)]
        values += [marked(f"{path}.step_ms", ms), marked(f"{path}.peak_bytes", table.memory), marked(f"{path}.spikes")]
        rows.append(_table_row(head, values))
    is_open = " open" if found["runs_failed"] else ""
    details = f"<details{is_open}><summary><h2>All runs</h2></summary>{_table(head, rows)}</details>"
    return f'<section id="runs">{details}</section>\n'


def _table(head: list[str], rows: list[str]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _table_row(head: list[str], values: list[str]) -> str:
    """Return a row. On a phone each cell is a line with its name in front."""
    cells = [f'<td data-name="{escape(n)}"><span>{value}</span></td>' for n, value in zip(head, values, strict=True)]
    return f"<tr>{''.join(cells)}</tr>"


# ----- how -----


def how(found: Mapping[str, Any], marked: Marked) -> str:
    """Return the command, the machine and the rules."""
    plan, machine = found["plan"], found["machine"]
    words = ["adopt-hf", "compare", "--optims", ",".join(plan["optims"])]
    lrs = plan["lrs"][len(plan["lrs"]) // 2 : len(plan["lrs"]) // 2 + 1] if plan["sweep"] else plan["lrs"]
    words += ["--lrs", ",".join(map(lr_text, lrs)), *["--lr-sweep"] * plan["sweep"], "--seeds", str(plan["seeds"])]
    command = " ".join(_unbroken(shlex.quote(word)) for word in [*words, "--", *plan["command"]])
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers", "accelerate"))
    confidence = percent(found["confidence"])
    rules = [
        f"The final loss is the last {loss_name(found)} that a run has logged, and the best is the lowest."
        if found["metric"] == "eval_loss"
        else "The final loss is the mean of the last tenth of the logged training losses; the best is the lowest mean.",
        "Runs are paired by seed: the same data order, and where shapes allow the same initial weights.",
        f"Intervals are Student's, at {confidence}. That of the verdict covers the choice of learning rates, too.",
        "Steps to a loss are those to the first log at or below the reference's final loss of the same seed, at its "
        "best learning rate; their mean is over the seeds that reach it.",
        "Peak memory is that of the largest process: of the GPU if one is used, otherwise of the host.",
        f"Spikes: {spikes.RULE}.",
    ]
    list_ = "".join(f"<li>{escape(rule)}</li>" for rule in rules)
    return (
        f'<section id="how"><h2>How it was made</h2><pre class="command">{command}</pre><p class="muted">'
        f"{escape(machine['system'])}, {marked('machine.cores')} cores; Python {escape(machine['python'])}, "
        f'{escape(versions)}. Runs at once: {marked("jobs")}.</p><ul class="rules">{list_}</ul></section>\n'
    )


def _unbroken(word: str) -> str:
    """Return a word of the command, in which no line ends unless it is long."""
    return f'<span class="nb">{escape(word)}</span>' if len(word) < SHORT else escape(word)
