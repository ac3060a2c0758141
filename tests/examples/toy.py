"""A toy run of the GPT-2 recipe: a data set of short documents, a config of 40 steps, and the log of a run."""

import json
import random
from pathlib import Path
from typing import Any

import yaml


def write_toy(folder: Path, **overrides: Any) -> Path:
    """Write 300 documents of 40 words, and a config that trains one tiny layer on them. Return the config."""
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    rng = random.Random(0)
    with open(folder / "toy.jsonl", "w") as file:
        for number in range(300):
            file.write(json.dumps({"text": " ".join(rng.choices(words, k=40)), "number": number}) + "\n")
    settings = {
        "dataset_name": "json",
        "data_files": str(folder / "toy.jsonl"),
        "cache_dir": str(folder / "cache"),
        "vocab_size": 300,
        "block_size": 16,
        "max_eval_blocks": 16,
        "n_layer": 1,
        "n_head": 2,
        "n_embd": 16,
        "dropout": 0.1,  # so that the random states matter
        "max_steps": 40,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 5,
        "eval_steps": 10,
        "save_steps": 20,
        "report_to": "none",
    } | overrides
    config = folder / "toy.yaml"
    config.write_text(yaml.safe_dump(settings))
    return config


def history(output: Path) -> list[dict[str, float]]:
    """Return the log of a run."""
    log: list[dict[str, float]] = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return log


def losses(output: Path, key: str) -> list[float]:
    """Return the numbers of one kind in the log of a run."""
    return [entry[key] for entry in history(output) if key in entry]
