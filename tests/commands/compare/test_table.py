"""The tables: cells of the live one, lines where there is no terminal, and the file for people."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from rich.console import Console

from adopt_hf.commands.compare import results, table
from adopt_hf.commands.compare.plan import Run
from adopt_hf.commands.compare.runner import Runner, Started
from tests.support.comparisons import PLAN, all_finished, failed, finished


def runner(done: dict[Run, dict[str, Any]], going: list[Any]) -> Runner:
    return cast(Runner, SimpleNamespace(done=done, going=going, runs=PLAN.runs(), jobs=2, before=set()))


def going(run: Run, **seen: Any) -> Started:
    return cast(Started, SimpleNamespace(run=run, since=0.0, seen=lambda: seen))


def shown(console_width: int, work: Runner) -> str:
    out = io.StringIO()
    Console(file=out, width=console_width).print(table.LiveTable(PLAN).table(work))
    return out.getvalue()


def test_the_live_table_has_each_run_in_a_cell() -> None:
    first, second, third, fourth = PLAN.runs()[:4]
    work = runner(
        {first: finished(first), second: failed("x")},
        [going(third, step=30, max_steps=120, loss=3.25), going(fourth)],
    )
    text = shown(100, work)
    lines = [line for line in text.splitlines() if "e-" in line]
    assert len(lines) == 6
    assert f"{table.number(finished(first)['curves']['eval_loss'][-1][1])} ✓" in text
    assert "failed" in text
    assert "━━━━━━  25% 3.250" in text
    assert "starts" in text
    assert text.count("·") == 18 - 4
    assert "2 of 18 runs have ended, 2 are going on" in " ".join(text.split())


def test_a_diverged_run_and_one_without_a_held_out_loss() -> None:
    run = PLAN.runs()[0]
    done = finished(run)
    done["curves"] = {"eval_loss": [], "loss": [(5, 2.0), (10, None)]}
    assert table.cell(done, None).plain == "diverged"
    done["curves"]["loss"] = [(5, 2.0), (10, 1.5)]
    assert table.cell(done, None).plain == "1.500 ✓"


def test_where_there_is_no_terminal_a_line_is_printed_for_each_run_that_ends(capsys: Any) -> None:
    first, second = PLAN.runs()[:2]
    work = runner({}, [])
    live = table.LiveTable(PLAN)
    with live:
        for run, done in ((first, finished(first)), (second, failed("a", "OSError: [disk] is full"))):
            work.done[run] = done
            live.show(work)
            live.show(work)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("finished adopt_lr3e-4_seed0: loss ")
    assert lines[1:] == ["failed adamw_torch_fused_lr3e-4_seed0 (exit code 1): OSError: [disk] is full"]


def test_durations() -> None:
    assert [table.duration(seconds) for seconds in (4.2, 89, 600, 9000)] == ["4 s", "89 s", "10 min", "2.5 h"]


def test_the_file_for_people(tmp_path: Path) -> None:
    done = all_finished()
    broken = PLAN.runs()[4]
    done[broken] = failed("a | b", "OSError: <disk> is full", code=7)
    found = results.results(PLAN, done, 1)
    text = table.markdown(found)
    assert text.startswith(f"# {found['verdicts'][0]['sentence']}\n")
    assert f"| {broken.name} | 7 | a \\| b<br>OSError: &lt;disk> is full |" in text
    (head,) = [line for line in text.splitlines() if line.startswith("| optimizer")]
    assert head.startswith(
        "| optimizer | lr | runs | final held-out loss | best | steps to adamw_torch_fused | ms a step"
    )
    assert len([line for line in text.splitlines() if line.startswith(("| adopt |", "| adamw_torch_fused |"))]) == 6
    assert "| adopt | 3e-3 | 2 of 3, 1 failed |" in text


def test_the_file_says_where_the_best_learning_rate_lies_and_what_shared_the_machine() -> None:
    plan = PLAN._replace(is_sweep=True, seeds=1)
    text = table.markdown(results.results(plan, all_finished(plan, shared=True), 2))
    assert "adopt: best at learning rate 1e-3. Its valley, where the loss is at most 2 % above the best, goes" in text
    assert "There is one seed, so no interval" in text
    assert "* Runs shared the machine (--jobs), so their times say nothing about the optimizers." in text
    done = {run: finished(run, 2 * run.lr * 1e3) for run in plan.runs()}
    text = table.markdown(results.results(plan, done, 1))
    assert "adopt: best at learning rate 3e-4, the lowest that was tried: a better one may lie beyond it." in text


def test_what_is_printed_at_the_end() -> None:
    done = all_finished()
    done[PLAN.runs()[0]] = failed("Error: [bold]x[/]")
    out = io.StringIO()
    found = results.results(PLAN, done, 1)
    table.show_results(found, Console(file=out, width=140))
    text = out.getvalue()
    assert found["verdicts"][0]["sentence"] in text
    assert "    Error: [bold]x[/]" in text
