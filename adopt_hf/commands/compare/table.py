"""The tables: one that lives in the terminal while the runs go on, and one of the results."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from adopt_hf.commands.compare import outcome
from adopt_hf.commands.compare.plan import Plan, Run, lr_text
from adopt_hf.commands.compare.runner import Runner, Started
from adopt_hf.commands.compare.verdict import loss_name, number

BAR = 6  # characters


class LiveTable:
    """The set of runs as a table: a row for each optimizer and learning rate, a column for each seed.

    Where the output is no terminal, a line is printed for each run that ends.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self.console = Console()
        self.since = time.monotonic()
        self.said: set[Run] = set()
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None

    def __enter__(self) -> "LiveTable":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def show(self, runner: Runner) -> None:
        """Draw the table again, and say what has happened since."""
        for run, done in runner.done.items():
            if run in self.said or run in runner.before:
                continue
            self.said.add(run)
            if done["status"] == "failed":
                why = escape(outcome.reason(done["last_lines"]))
                self.console.print(f"[red]failed[/] {run.name} (exit code {done['exit_code']}): {why}", soft_wrap=True)
            elif self.live is None:
                loss = final_loss(done)
                shown = "diverged" if loss is None else number(loss)
                count = f"{len(runner.done)} of {len(runner.runs)}"
                self.console.print(f"finished {run.name}: loss {shown} ({count})", soft_wrap=True, highlight=False)
        if self.live is not None:
            self.live.update(self.table(runner), refresh=True)

    def table(self, runner: Runner) -> Table:
        """Return the table of this moment."""
        table = Table(box=box.SIMPLE_HEAD, caption=self.caption(runner), caption_justify="left")
        table.add_column("optimizer", style="bold")
        table.add_column("learning rate", justify="right")
        for seed in range(self.plan.seeds):
            table.add_column(f"seed {seed}", justify="right", no_wrap=True)
        going = {one.run: one for one in runner.going}
        for optim in self.plan.optims:
            for lr in self.plan.lrs:
                runs = [Run(optim, lr, seed) for seed in range(self.plan.seeds)]
                table.add_row(optim, lr_text(lr), *(cell(runner.done.get(run), going.get(run)) for run in runs))
        return table

    def caption(self, runner: Runner) -> str:
        """Return how many runs are finished, and about how long the others will take."""
        done, total = len(runner.done), len(runner.runs)
        text = f"{done} of {total} runs have ended, {len(runner.going)} are going on"
        times = [runner.done[run]["seconds"] for run in runner.done if run not in runner.before]
        if times and done < total:
            spent = sum(time.monotonic() - one.since for one in runner.going)
            left = max(0.0, (total - done) * sum(times) / len(times) - spent) / runner.jobs
            text += f"; about {duration(left)} left"
        return text


def cell(done: Mapping[str, Any] | None, going: Started | None) -> Text:
    """Return what the table shows of a run."""
    if done is not None and done["status"] == "failed":
        return Text("failed", "bold red")
    if done is not None:
        loss = final_loss(done)
        return Text("diverged", "red") if loss is None else Text(f"{number(loss)} ✓", "green")
    if going is None:
        return Text("·", "dim")
    seen = going.seen()
    if not seen.get("max_steps"):
        return Text("starts", "cyan")
    share = seen["step"] / seen["max_steps"]
    full = int(share * BAR)
    loss = seen.get("loss")
    shown = f" {number(loss)}" if isinstance(loss, float) else ""
    return Text.assemble((("━" * full), "cyan"), (("━" * (BAR - full)), "dim"), f" {share:4.0%}{shown}")


def final_loss(done: Mapping[str, Any]) -> float | None:
    """Return the loss that a finished run has ended with: held out, if it has evaluated."""
    metric = outcome.HELD_OUT if done["curves"][outcome.HELD_OUT] else outcome.TRAINING
    points = outcome.judged(done["curves"], metric)
    return points[-1][1] if points else None


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


# ----- the results -----

HEAD = ("optimizer", "lr", "runs", "final", "best", "steps to {}", "ms a step", "peak", "spikes")


def rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of the results as texts, the head first."""
    head = [name.format(found["reference"]) for name in HEAD]
    head[3], head[4] = f"final {loss_name(found)}", "best"
    lines = [head]
    for one in found["settings"]:
        steps = "-" if one["steps_to_reference"] is None else f"{one['steps_to_reference']:,.0f}"
        if one["targets"] and one["reached"] < one["targets"]:
            steps += f" ({one['reached']} of {one['targets']})"
        runs = f"{one['finished']} of {one['planned']}"
        runs += f", {one['failed']} failed" if one["failed"] else ""
        lines.append(
            [
                one["optim"],
                lr_text(one["lr"]),
                runs,
                mean_text(one["final"], one["diverged"]),
                mean_text(one["best"], 0),
                steps,
                mean_text(one["step_ms"], 0, ".1f") + ("*" if found["shared"] and one["step_ms"]["n"] else ""),
                "-" if one["peak_bytes"] is None else memory(one["peak_bytes"]),
                "-" if one["spikes"] is None else str(one["spikes"]),
            ]
        )
    return lines


def mean_text(found: Mapping[str, Any], diverged: int, form: str | None = None) -> str:
    """Return a mean with its interval."""
    if diverged:
        return f"{diverged} diverged"
    if found["mean"] is None:
        return "-"
    mean, half = found["mean"], found["half"]
    text = number(mean, half) if form is None else f"{mean:{form}}"
    if half is None:
        return text
    return f"{text} ± {number(half, mean) if form is None else f'{half:{form}}'}"


def memory(count: float) -> str:
    """Return a number of bytes in MiB or GiB."""
    return f"{count / 2**20:,.0f} MiB" if count < 10 * 2**30 else f"{count / 2**30:,.1f} GiB"


def failed(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the runs that have failed."""
    return [run for run in found["runs"] if run["status"] == "failed"]


def notes(found: Mapping[str, Any]) -> list[str]:
    """Return what has to be known to read the table."""
    said = []
    if found["plan"]["seeds"] == 1:
        said.append("There is one seed, so no interval: another seed may reverse every difference.")
    else:
        said.append(f"± is the {100 * found['confidence']:.0f} % interval of the mean over the seeds.")
    if found["shared"]:
        said.append("* Runs shared the machine (--jobs), so their times say nothing about the optimizers.")
    if found["plan"]["sweep"]:
        said += [valley(one) for one in found["best"]]
    return said


def valley(best: Mapping[str, Any]) -> str:
    """Return where an optimizer's best learning rate lies, and how wide its valley is."""
    of = best["valley"]
    edge = f", the {best['edge']} that was tried: a better one may lie beyond it" if best["at_edge"] else ""
    ends = of["open_below"] or of["open_above"]
    return (
        f"{best['optim']}: best at learning rate {lr_text(best['lr'])}{edge}. Its valley, where the loss is at most "
        f"{100 * of['share']:.0f} % above the best, goes from {lr_short(of['low'])} to {lr_short(of['high'])}, a "
        f"factor of {'at least ' if ends else ''}{of['factor']:.1f}."
    )


def lr_short(lr: float) -> str:
    """Return a learning rate between two that were tried with two digits."""
    return lr_text(float(f"{lr:.1e}"))


def markdown(found: Mapping[str, Any]) -> str:
    """Return the table as a file for people."""
    head, *lines = rows(found)
    text = [f"# {' '.join(one['sentence'] for one in found['verdicts'])}", ""]
    text += [sentence for one in found["verdicts"][:1] for sentence in one["interval"]] + found["conditions"]
    text += [
        "",
        f"| {' | '.join(head)} |",
        f"|{' --- |' * len(head)}",
        *(f"| {' | '.join(line)} |" for line in lines),
        "",
    ]
    text += [*notes(found), ""]
    if failed(found):
        text += ["| failed run | exit code | last lines |", "| --- | --- | --- |"]
        for run in failed(found):
            last = "<br>".join(line.replace("|", "\\|").replace("<", "&lt;") for line in run["last_lines"][-3:])
            text.append(f"| {run['name']} | {run['exit_code']} | {last} |")
        text.append("")
    text += ["    adopt-hf compare ... -- " + " ".join(found["plan"]["command"]), ""]
    return "\n".join(text)


def show_results(found: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the verdict, the table and the runs that have failed."""
    console = console or Console(width=None if sys.stdout.isatty() else 140)
    head, *lines = rows(found)
    table = Table(box=box.SIMPLE_HEAD)
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i == 0 else "right")
    for line in lines:
        table.add_row(*map(escape, line))
    console.print(table)
    for run in failed(found):
        console.print(f"[red]failed[/] {run['name']} (exit code {run['exit_code']})")
        for text in run["last_lines"][-3:]:
            console.print(f"    {escape(text)}", soft_wrap=True, highlight=False)
    for text in notes(found):
        console.print(text, soft_wrap=True, highlight=False, style="dim")
    console.print()
    for one in found["verdicts"]:
        console.print(one["sentence"], soft_wrap=True, highlight=False, style="bold")
