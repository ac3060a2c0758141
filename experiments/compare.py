"""The sets of docs/compare.md: `adopt-hf compare` on the two offline recipes, as a new user calls it.

A call takes ten minutes of two cores a set. It goes on where an earlier one was stopped. The results are kept in
experiments/results/compare.jsonl.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adopt_hf.commands.compare import table
from adopt_hf.commands.compare.folder import Folder
from experiments.harness import command, machine, pages, runs

RESULTS = runs.RESULTS / "compare.jsonl"
PACKAGES = ("torch", "transformers", "accelerate")
SETS = {
    "gpt2": "--optims adopt,adamw_torch_fused --lrs 2e-3,4e-3 --seeds 3 -- accelerate launch "
    "--config_file examples/accelerate_configs/cpu.yaml examples/gpt2_pretraining/train.py --max_steps 150 "
    "--warmup_steps 10 --logging_steps 5 --eval_steps 25 --max_eval_blocks 64 --sample_tokens 0",
    "llama": "--lrs 2e-3 --lr-sweep --seeds 1 --jobs 2 -- python examples/llama_instruct/train.py --max_steps 30 "
    "--logging_steps 1 --eval_strategy no --eval_on_start false --evaluate false --chat_prompt '' --save_strategy no",
}


def main(words: Sequence[str] | None = None) -> None:
    """Run the sets that are named, and keep their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"any of {', '.join(SETS)} (default: all)")
    parser.add_argument("--folder", type=Path, default=Path("runs/compare"), help="the folder of the sets")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the results are kept")
    options = command.parse(parser, words, results=Path("runs/compare/quick.jsonl"), sets=["llama"])
    if unknown := set(options.sets) - SETS.keys():
        parser.error(f"there is no set {', '.join(sorted(unknown))}: write any of {', '.join(SETS)}")
    for name in options.sets or SETS:
        conditions = machine.now(*PACKAGES)
        output = options.folder / name
        own, _, theirs = SETS[name].partition(" -- ")
        called = [sys.executable, "-m", "adopt_hf", "compare", *shlex.split(own), "--output", str(output)]
        subprocess.run([*called, "--", *shlex.split(theirs)], check=True)
        keep(name, output, conditions, options.results)


def keep(name: str, output: Path, conditions: dict[str, Any], file: Path = RESULTS) -> None:
    """Add the results of a set to a file, in place of earlier ones of this set."""
    found = json.loads((Folder(output).path / "results.json").read_text(encoding="utf-8"))
    row = {"name": name, "conditions": conditions, "results": found}
    runs.keep(file, [*(one for one in runs.lines(file) if one["name"] != name), row])


def shown(row: dict[str, Any]) -> str:
    """Return a set as the page shows it: the command, the verdict, the table and what belongs to it."""
    found = row["results"]
    head, *lines = table.rows(found)
    said = [sentence for one in found["verdicts"] for sentence in (f"**{one['sentence']}**", *one["interval"])]
    return "\n\n".join(
        [
            f"```bash\nadopt-hf compare {in_lines(SETS[row['name']])}\n```",
            " ".join([*said, *found["conditions"]]),
            pages.table(head, lines),
            " ".join(table.notes(found)),
            machine.sentence(row["conditions"]),
        ]
    )


def in_lines(words: str) -> str:
    """Return the words of a command in lines that a page can show."""
    return words.replace(" -- ", " \\\n    -- ").replace(" --max_steps", " \\\n    --max_steps")


def _text(name: str) -> str:
    return shown(next(row for row in runs.lines(RESULTS) if row["name"] == name))


TEXTS: dict[str, Callable[[], str]] = {
    "compared on GPT-2": lambda: _text("gpt2"),
    "compared on LLaMA": lambda: _text("llama"),
}

if __name__ == "__main__":
    main()
