"""The protocol: its parts and optimizers, a run that is killed and goes on, and the page, which is the results."""

import json
import math
import statistics
import sys

import pytest
import torch

from adopt_hf import ADOPT
from experiments.defaults import decisions, tables
from experiments.defaults import page as defaults_page
from experiments.defaults import protocol as defaults
from experiments.defaults.atan2 import Atan2ADOPT
from experiments.harness import runs as parts
from experiments.harness.runs import InputError


def groups():
    return [{"params": [torch.nn.Parameter(torch.ones(3))], "lr": 0.1, "weight_decay": 0.1}]


def made(name, beta2=0.9999, steps=500):
    return defaults.make(defaults.VARIANTS[name], groups(), beta2, steps)


def test_the_optimizers_are_what_their_names_say():
    assert type(made("adamw-0.95")) is torch.optim.AdamW
    assert made("adamw-0.999", beta2=0.99).defaults["betas"] == (0.9, 0.999)
    for name, warmup in (("adopt", False), ("adoptw-1", 1.0), ("adoptw-0.65", 0.65)):
        optimizer = made(name, beta2=0.99)
        assert isinstance(optimizer, ADOPT)
        group = optimizer.param_groups[0]
        assert (group["beta2_warmup"], group["betas"], group["decouple"]) == (warmup, (0.9, 0.99), True)
        assert group["weight_decay"] == 0.1
    assert made("adoptw-1-beta2-0.95", beta2=0.99).defaults["betas"] == (0.9, 0.95)
    assert made("adoptw-1-beta2-steps").defaults["betas"][1] == pytest.approx(0.998)
    assert made("adoptw-1-clip-none").param_groups[0]["clip_exp"] is None
    assert made("adoptw-1-clip-0.5").param_groups[0]["clip_exp"] == 0.5
    assert type(made("adoptw-0.8-atan2")) is Atan2ADOPT


def test_adopt_with_atan2_is_adopt_where_the_gradient_is_small_against_v():
    # v is 4 after the first step; then atan2(g, 2) * 4 / pi, into m with 1 - beta1.
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = Atan2ADOPT([p], lr=1.0, betas=(0.9, 0.99), weight_decay=0.5, beta2_warmup=0.8)
    p.grad = torch.tensor([2.0, 0.0])
    optimizer.step()
    assert p.tolist() == [0.0, 0.0]
    p.data.fill_(1.0)
    p.grad = torch.tensor([2.0, 3.0])
    optimizer.step()
    # Decoupled decay halves; atan2(2, 2) is pi/4, so u = 1. The other element had no gradient before: u = 0.
    assert p.tolist() == pytest.approx([0.5 - 0.1, 0.5])
    beta2 = 1 - 2**-0.8
    assert optimizer.state[p]["v"].tolist() == pytest.approx([4.0, 9.0])
    p.grad = torch.tensor([1.0, 1.0])
    optimizer.step()
    beta2 = 1 - 3**-0.8
    assert optimizer.state[p]["v"].tolist() == pytest.approx([4 * beta2 + 1 - beta2, 9 * beta2 + 1 - beta2])
    with pytest.raises(ValueError, match="beta2_warmup"):
        Atan2ADOPT([p], beta2_warmup=0.0)


def test_every_part_is_wanted_once_and_covers_what_the_rule_needs():
    found = [part for stage in defaults.stages().values() for part in stage]
    assert len({part.name for part in found}) == len(found)
    cells = {
        (p.settings["task"], p.settings["variant"], p.settings["lr"], s) for p in found for s in p.settings["seeds"]
    }
    for task in defaults.TASKS.values():
        assert task.seeds >= (5 if task.name == "demo" else 8)
        assert len(task.rates) >= 3
        assert all((task.name, v, task.rates[0], s) in cells for v in defaults.DECIDING for s in range(task.seeds))
        assert all((task.name, v, task.rates[0], s) in cells for v in defaults.PLAIN for s in range(task.seeds))
        for lr in task.rates:
            assert all((task.name, v, lr, s) in cells for v in defaults.WARM_UP for s in range(task.seeds))
    assert all(part.settings["variant"] in defaults.VARIANTS for part in found)
    chunk = [part for part in found if part.settings["task"] == "demo"][:4]
    assert {part.settings["variant"] for part in chunk} == set(defaults.WARM_UP)  # a seed of each comes first


def test_adamws_rate_is_the_pilots_best():
    found = tables.gather(defaults, parts.kept(defaults.NAME))
    for task, rates in defaults.PILOT_RATES.items():
        pilot = found.pilot(task)
        if set(pilot) == set(rates):
            assert defaults.TASKS[task].rates[0] == min(pilot, key=pilot.get), task


def test_a_part_runs_and_what_is_finished_is_not_run_again(tmp_path):
    settings = {"task": "mlp", "variant": "adoptw-0.8", "lr": 0.01, "steps": 200, "seeds": [0, 3]}
    part = parts.Part(defaults.NAME, "mlp-tiny", settings)
    rows = parts.run([part], defaults.one, tmp_path)
    assert len(rows[0]["result"]["losses"]) == 2
    assert all(map(math.isfinite, rows[0]["result"]["losses"]))
    assert rows[0]["result"]["cpu_seconds"] > 0
    kept = defaults.keep(parts.read(defaults.NAME, tmp_path), tmp_path / "rows.jsonl")
    assert defaults.keep([], tmp_path / "rows.jsonl") == kept == json.loads(json.dumps(rows))

    def again(**settings):
        raise AssertionError("it is run again")

    assert parts.run([part], again, tmp_path) == rows


def test_what_is_kept_is_not_left_and_other_settings_are_an_error():
    part = defaults.stages()["decide"][0]
    there = {"name": part.name, "settings": dict(part.settings)}
    assert part.name not in {left.name for left in defaults.todo(["decide"], [there])}
    with pytest.raises(InputError, match="other settings"):
        defaults.todo(["decide"], [{"name": part.name, "settings": {**part.settings, "steps": 1}}])
    with pytest.raises(InputError, match="no stage nonsense"):
        defaults.todo(["nonsense"], [])
    with pytest.raises(InputError, match="no task nonsense"):
        defaults.todo(["decide"], [], ["nonsense"])
    assert {p.settings["task"] for p in defaults.todo(["decide"], [], ["mlp"])} == {"mlp"}


def made_up(task, variant, mean, lr=None, seeds=None, seconds=6.0):
    task = defaults.TASKS[task]
    lr, seeds = lr or task.rates[0], list(range(task.seeds)) if seeds is None else seeds
    settings = {"task": task.name, "variant": variant, "lr": lr, "steps": task.steps, "seeds": seeds}
    losses = [mean + 0.1 * seed + 0.002 * (seed % 2) * variant.startswith("adopt") for seed in seeds]
    return {
        "name": f"{task.name}-{variant}-{lr}",
        "settings": settings,
        "result": {"losses": losses, "cpu_seconds": seconds},
        "conditions": {"seconds": seconds, "date": "2026-01-01", "processor": "cpu", "cpus": 2, "commit": "abc"},
    }


def test_the_minutes_left_are_those_that_other_runs_of_the_task_took():
    rows = [made_up("mlp", "adopt", 1.0, seconds=s, seeds=[0, 1]) for s in (2.0, 4.0, 60.0)]
    left = [part for part in defaults.stages()["decide"] if part.settings["task"] == "mlp"]
    assert defaults.minutes(left, rows) == pytest.approx(4 * 8 * 2.0 / 60)
    assert math.isnan(defaults.minutes(defaults.stages()["once"], rows))


def test_the_command_does_what_is_left_keeps_it_and_writes_the_page(tmp_path, monkeypatch, capsys):
    settings = {"task": "mlp", "lr": defaults.TASKS["mlp"].rates[0], "steps": 2, "seeds": [0]}
    wanted = [parts.Part(defaults.NAME, f"mlp-{name}", {**settings, "variant": name}) for name in ("adopt", "adoptw-1")]
    monkeypatch.setattr(defaults, "stages", lambda: {"tiny": wanted})
    page, results = tmp_path / "defaults.md", tmp_path / "rows.jsonl"
    page.write_text(defaults_page.PAGE.read_text(encoding="utf-8"), encoding="utf-8")

    def call(*words):
        places = ["--folder", tmp_path / "runs", "--results", results, "--page", page, "--workers", 1]
        monkeypatch.setattr(sys, "argv", ["defaults", *map(str, places), *words])
        defaults.main()
        return capsys.readouterr().out

    parts.run(wanted[:1], defaults.one, tmp_path / "runs")  # a call that was killed after its first part
    assert "1 rows are kept, 1 parts are left" in call("--left")
    done = []
    monkeypatch.setattr(defaults, "one", lambda **settings: done.append(settings["variant"]) or {"losses": [1.0]})
    call()
    assert done == ["adoptw-1"]
    assert [row["name"] for row in parts.lines(results)] == ["mlp-adopt", "mlp-adoptw-1"]
    assert "not run yet (1 of 8 seeds)" in page.read_text(encoding="utf-8")
    call("--page_only")
    assert done == ["adoptw-1"]
    with pytest.raises(SystemExit):
        call("--stages", "nonsense")


def test_a_page_without_rows_claims_nothing():
    page = defaults_page.text(defaults, [])
    assert "not decided yet" in page
    assert "it stays the default" not in page
    assert "k = 0.8:" not in page
    assert "±" not in page


def test_a_page_shows_means_differences_and_what_is_not_run_yet():
    rows = [made_up("mlp", "adamw-0.95", 3.0), made_up("mlp", "adamw-0.999", 4.0), made_up("mlp", "adoptw-0.8", 2.0)]
    rows.append(made_up("mlp", "adopt", 5.0, seeds=[0, 1, 2]))
    found = tables.gather(defaults, rows)
    table = "\n".join(tables.task_table(defaults, found, "mlp"))
    mean = statistics.fmean(rows[0]["result"]["losses"])
    assert f"| AdamW, beta2 0.95 | {mean:.3f} ± " in table
    assert "| - |" in table
    assert "| **-0.999 ± 0.001** |" in table
    assert "| ADOPT, the paper's rule | not run yet (3 of 8 seeds) | not run yet |" in table
    assert "| ADOPTW, k = 1 | not run yet | not run yet | not run yet | not run yet | not run yet |" in table
    assert "| ADOPTW, k = 0.5 | not run yet | not run yet | - | - | - |" in table


def test_a_page_with_all_rows_says_what_the_rule_decides():
    means = {
        "adamw-0.95": 3.0,
        "adamw-0.999": 3.1,
        "adopt": 3.5,
        "adoptw-1": 3.0,
        "adoptw-0.65": 2.8,
        "adoptw-0.5": 2.9,
    }
    rows = [
        made_up(task, variant, means.get(variant, 2.7) + 0.1 * (lr != t.rates[0]), lr)
        for task, t in defaults.TASKS.items()
        for variant in defaults.DECIDING
        for lr in t.rates
    ]
    page = defaults_page.text(defaults, rows)
    assert "**The exponent: k = 0.8.**" in page
    assert "**The warm-up with k = 1 against the paper's rule: it stays the default.** Of 22 comparisons 22" in page
    assert "**The warm-up with k = 0.8 against the paper's rule: it stays the default.**" in page
    lost = [r for r in rows if (r["settings"]["task"], r["settings"]["variant"]) != ("vae", "adoptw-0.8")]
    lost += [made_up("vae", "adoptw-0.8", 9.0, lr) for lr in defaults.TASKS["vae"].rates]
    assert "**The exponent: k = 0.65.**" in defaults_page.text(defaults, lost)


def test_the_first_screen_names_where_adoptw_is_behind():
    better = [row for task in ("demo", "lora", "llama") for row in both(task)]
    rows = [*better, made_up("demo", "adoptw-1", 2.9), made_up("lora", "adoptw-1", 3.0), made_up("lora", "adopt", 2.0)]
    rows += [made_up("llama", "adoptw-1", 3.5), made_up("llama", "adopt", 3.25)]
    found = tables.gather(defaults, rows)
    table = tables.short(defaults, found).splitlines()
    cells = {line.split(" | ")[0].strip("| "): line.rstrip(" |").split(" | ")[2:] for line in table[2:]}
    assert set(cells) == {defaults.TASKS[name].title for name in tables.FIRST_SCREEN}
    assert cells["Demo"][1:] == ["not run yet", "**-0.099 ± 0.001**"]
    assert cells["LLaMA, all weights"][1:] == ["**+0.251 ± 0.001**", "**+0.501 ± 0.001**"]
    words = defaults_page.behind(defaults, found)
    assert words == (
        "of 3 small tasks it is ahead of the better AdamW on 1, and behind on 2 "
        "(LoRA +0.001 ± 0.001, LLaMA, all weights +0.501 ± 0.001)"
    )


def both(task):
    return [made_up(task, name, 3.0 + 0.1 * (name != "adamw-0.95")) for name in defaults.ADAMWS]


def test_what_is_tried_once_is_compared_with_adoptw_of_the_same_exponent():
    rows = [made_up(task, "adoptw-1", 3.0) for task in defaults.ONCE_TASKS]
    rows += [made_up(task, "adoptw-0.8", 2.0) for task in defaults.ONCE_TASKS]
    rows += [made_up(task, "adoptw-0.8-atan2", 2.5) for task in defaults.ONCE_TASKS]
    rows += [made_up(task, "adoptw-1-clip-0.5", 2.5) for task in defaults.ONCE_TASKS]
    rows += both("gpt2_500")
    found = tables.gather(defaults, rows)
    once = {line.split(" | ")[0].strip("| "): line for line in tables.once(defaults, found).splitlines()[2:]}
    assert "| **-0.500 ± 0.000** | **-0.500 ± 0.000** | yes |" in once["ADOPTW, k = 1, clip_exp 0.5"]
    assert "| **+0.500 ± 0.000** | **+0.500 ± 0.000** | no |" in once["ADOPTW, k = 0.8, atan2"]
    assert "| not run yet | not run yet | not decided yet |" in once["ADOPTW, k = 1, clip_exp None"]
    assert len(once) == len([name for name in defaults.ONCE if not name.startswith("adamw")])
    clip = tables.clip(defaults, found)
    assert "| GPT-2, 500 steps | **-0.500 ± 0.000** | **-0.499 ± 0.001** |" in clip
    assert "| LoRA | not run yet | not run yet |" in clip


def test_a_page_says_that_no_exponent_can_win_before_all_is_run():
    rows = both("mlp")
    rows += [made_up("mlp", defaults.adoptw(k), 4.0) for k in defaults.EXPONENTS]
    assert "**The exponent: k = 1.** No k is admissible." in defaults_page.text(defaults, rows)
    assert "**The exponent: not decided yet**" in defaults_page.text(defaults, rows[:-1])


def test_the_page_is_the_results(tmp_path):
    rows, page = parts.kept(defaults.NAME), defaults_page.PAGE.read_text(encoding="utf-8")
    copy = tmp_path / "defaults.md"
    copy.write_text(page, encoding="utf-8")
    defaults_page.write(defaults, rows, copy)
    assert copy.read_text(encoding="utf-8") == page, "run python -m experiments defaults --page_only"
    assert (tmp_path / "defaults" / "differences.png").stat().st_size > 10_000
    assert decisions.RULE in page


def test_a_page_without_markers_is_refused(tmp_path):
    page = tmp_path / "page.md"
    with pytest.raises(InputError, match="page"):
        defaults_page.write(defaults, [], page)
    page.write_text("<!-- defaults rule: make docs-numbers -->")
    with pytest.raises(InputError, match="markers"):
        defaults_page.write(defaults, [], page)
