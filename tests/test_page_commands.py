"""Each command of README.md and docs/ is run: here as it stands, by a test that is named, or by CI.

A command that needs GPUs, a cluster or a download says so on its line or in its paragraph.
"""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from adopt_hf import commands
from experiments import recipes
from experiments.harness import pages

ROOT = Path(__file__).parents[1]
FOLDERS = ("docs", "docs/guides", "docs/concepts", "examples/*")  # docs/upstream has texts for other projects
PAGES = [ROOT / "README.md", *(page for folder in FOLDERS for page in sorted(ROOT.glob(f"{folder}/*.md")))]
PROGRAMS = ("adopt-hf", "accelerate", "deepspeed", "git", "make", "pip", "python", "sbatch", "tensorboard", "torchrun")
COMMAND = re.compile(rf"(?:[A-Z_]+=\S+ )*(?:{'|'.join(PROGRAMS)}) .*")
SHELL = re.compile(r"^```(?:bash|sh|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

# Cheap ones, run in this process as the page has them.
HERE = r"(python -m adopt_hf|adopt-hf) memory .*"
# A pattern of the command, and the test that runs it, with a small model instead of the words in capitals.
RUN_BY = {
    r"make test": ".ci/run",
    r"make demo": "tests/experiments/test_recipes.py::test_a_real_run_adds_a_row",
    r"make demo-instruct": "tests/examples/test_llama_instruct_processes.py::test_the_offline_recipe",
    r"make bench": "tests/experiments/test_step.py::test_every_installed_peer_has_a_row",
    r"pip install adopt_hf": "tests/core/test_wheel.py::test_with_torch_alone",
    r"pip install -c constraints.txt -e .*": "tests/test_docs.py::test_each_make_target_installs_what_it_needs",
    r"git clone <this repository> && cd adopt_hf": "tests/core/test_release.py::test_the_sdist_is_complete",
    r"adopt-hf env": "tests/commands/test_env.py::test_it_names_versions_and_backends",
    r"adopt-hf run run_clm\.py .*": "tests/commands/test_run.py::test_same_as_python",
    r"accelerate launch -m adopt_hf run .*": "tests/commands/test_run.py::test_behind_a_launcher",
    r"adopt-hf run trl sft .*": "tests/integrations/transformers/test_trl_command.py::test_the_command_trains_adopt",
    r"python -m adopt_hf run -m trl\.scripts\..*": "tests/integrations/transformers/test_trl.py::test_by_name",
    r"adopt-hf run (torchrun|COMMAND) .*": (
        "tests/commands/test_run_command.py::test_a_launcher_below_us_trains_adopt_in_two_processes"
    ),
    r"adopt-hf run train\.py .* --resume_from_checkpoint .*": (
        "tests/commands/convert/test_conversion.py::test_the_trainer_goes_on_with_adopt"
    ),
    r"adopt-hf compare .*": "tests/commands/compare/test_command.py::test_a_real_script_killed_and_started_again",
    r"adopt-hf convert .*": "tests/commands/convert/test_conversion.py::test_in_place_and_the_default_output",
    r"python -m deepspeed\.checkpoint\.ds_to_universal .*": (
        "tests/processes/test_universal.py::test_another_number_of_processes"
    ),
    r"accelerate launch .* --deepspeed_multinode_launcher standard .*": (
        "tests/processes/test_hosts.py::test_two_hosts_train_the_weights_of_one_process"
    ),
    r"TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 torchrun .* --max_restarts 3 .*": (
        "tests/processes/test_elastic.py::test_a_restarted_run_continues_by_itself"
    ),
    r"(ACCELERATE_CONFIG=\S+ )?sbatch .*": "tests/examples/test_slurm.py::test_the_nodes_are_one_run",  # stand-ins
    r"accelerate launch --config_file examples/accelerate_configs/CONFIG\.yaml SCRIPT .*": (
        "tests/processes/test_matrix.py::test_parity"
    ),
    r"python -m experiments step": "tests/experiments/test_step.py::test_every_installed_peer_has_a_row",
    r"python -m experiments report": "tests/test_docs.py::test_no_passage_is_stale",
    r"python examples/gpt2_pretraining/train\.py --config examples/gpt2_pretraining/configs/stdlib\.yaml": (
        "tests/experiments/test_recipes.py::test_a_real_run_adds_a_row"
    ),
    r"python examples/gpt2_pretraining/train\.py --config \S+ --optim_args monitor=true": (
        "tests/experiments/test_monitor.py::test_a_recipe_is_trained_with_the_monitor"
    ),
    r"tensorboard --logdir runs/stdlib": ("tests/integrations/transformers/test_monitor.py::test_tensorboard_has_them"),
    r"OMP_WAIT_POLICY=PASSIVE python examples/llama_instruct/train\.py .*": (
        "tests/examples/test_llama_instruct_processes.py::test_the_offline_recipe"
    ),
    r"python train\.py configs/stdlib\.yaml --dataset_name json .*": (
        "tests/examples/test_gpt2_pretraining.py::test_what_a_run_leaves"
    ),
    r"python examples/llama_instruct/train\.py .* --dataset_name json .*": (
        "tests/examples/test_llama_instruct.py::test_what_a_run_leaves"
    ),
}
# What no test machine has, and the word that the paragraph or the line then has to have.
NEEDS = {
    r"python -m experiments (step|training) --device cuda": "GPU",
    r"python -m experiments gpu_check": "GPU",
    r"accelerate launch --config_file \S+ --num_processes 8 .*": "GPU",
    r"python train\.py configs/stdlib\.yaml --dataset_name wikitext .*": "download",
}


class Written(NamedTuple):
    """A command of a page."""

    page: str
    words: str
    around: str  # its line, its block and the paragraph before it


def read(page: Path) -> Iterator[Written]:
    """Yield the commands in the blocks of a page, and those of README.md that stand in a sentence."""
    text = pages.BLOCK.sub("", page.read_text(encoding="utf-8")).replace("\\\n", "")
    name = str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name
    indented = re.finditer(r"(?:^    [^\n]*\n?)+", text, re.MULTILINE)
    for block in [*SHELL.finditer(text), *indented]:
        before = text[: block.start()].rstrip().rsplit("\n\n", 1)[-1]
        for line in block[0].splitlines():
            if COMMAND.fullmatch(line.strip()):
                words = " ".join(re.sub(r"(^|\s)#.*", "", line).split())
                yield Written(name, words, f"{before}\n{block[0]}")
    if page.name == "README.md" and page.parent == ROOT:
        for words in re.findall(r"`([^`\n]+)`", text):
            if COMMAND.fullmatch(words):
                yield Written(name, words, "")


WRITTEN = list(dict.fromkeys(found for page in PAGES for found in read(page)))
PATTERNS = {HERE: "here", **RUN_BY, **NEEDS}


def rows(words: str) -> list[str]:
    """Return the patterns that a command has."""
    return [pattern for pattern in PATTERNS if re.fullmatch(pattern, words)]


@pytest.mark.parametrize("written", WRITTEN, ids=lambda one: f"{one.page}: {one.words}"[:120])
def test_a_command_is_run_or_says_what_it_needs(written: Written) -> None:
    found = rows(written.words)
    assert len(found) == 1, f"{written.words!r}: rows {found}. Add a test that runs it, and a row for it in this file"
    if found[0] in NEEDS:
        assert re.search(NEEDS[found[0]], written.around), f"the page has to say that it needs: {NEEDS[found[0]]}"


@pytest.mark.parametrize("words", sorted({one.words for one in WRITTEN if re.fullmatch(HERE, one.words)}))
def test_a_cheap_command_runs_as_it_stands(words: str, monkeypatch: Any, capsys: Any) -> None:
    given = words.removeprefix("python -m adopt_hf").removeprefix("adopt-hf")
    monkeypatch.setattr("sys.argv", ["adopt-hf", *shlex.split(given)])
    commands.main()
    printed = capsys.readouterr()
    assert len(printed.out.split()) > 10
    assert printed.err == ""


def test_no_row_is_without_a_command() -> None:
    assert [pattern for pattern in PATTERNS if not any(pattern in rows(one.words) for one in WRITTEN)] == []


@pytest.mark.parametrize("test", sorted(set(RUN_BY.values())))
def test_the_named_tests_exist(test: str) -> None:
    path, _, name = test.partition("::")
    text = (ROOT / path).read_text(encoding="utf-8")
    assert re.search(rf"^def {name}\(" if name else r"^make test$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("target", "run"), [("demo", recipes.RUNS["demo, ADOPTW"]), ("demo-instruct", recipes.RUNS["LLaMA, ADOPTW"])]
)
def test_a_demo_is_the_recipe_that_is_measured(target: str, run: recipes.Run) -> None:
    """The script, and the config that is given or that stands in the script's default."""
    planned = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    last = shlex.split(planned.replace("\\\n", ""))
    assert f"examples/{run.recipe}/train.py" in last
    config = f"examples/{run.recipe}/configs/{run.config}.yaml"
    text = (ROOT / "examples" / run.recipe / "arguments.py").read_text(encoding="utf-8")
    assert config in last or f"{run.config}.yaml" in text + (ROOT / f"examples/{run.recipe}/train.py").read_text()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("# A\n\n    adopt-hf nothing --at all\n", "rows \\[\\]"),
        ("# A\n\nSome words.\n\n```bash\naccelerate launch --config_file x.yaml --num_processes 8 y.py\n```\n", "GPU"),
    ],
)
def test_a_command_that_nothing_runs_is_found(text: str, says: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    (found,) = read(page)
    with pytest.raises(AssertionError, match=says):
        test_a_command_is_run_or_says_what_it_needs(found)
