"""A tiny GPT-2, data for it, and subprocesses."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import adopt_hf

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
}

# In a folder on PYTHONPATH, this hides transformers from a process as if it were not installed.
WITHOUT_TRANSFORMERS = """
import sys
from importlib.machinery import PathFinder

class WithoutTransformers(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "transformers" else super().find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, context):
        return iter(()) if context.name == "transformers" else super().find_distributions(context)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTransformers
"""

Finished = subprocess.CompletedProcess[str]
Starter = Callable[..., "Future[Finished]"]


@pytest.fixture(scope="session")
def start() -> Iterator[Starter]:
    """`start(args..., cwd=, env=, stdin=)` runs `python args...` beside the test, at most two at a time."""

    def run(args: tuple[object, ...], cwd: Path | None, env: dict[str, str], stdin: str | None) -> Finished:
        return subprocess.run(
            [sys.executable, *map(str, args)],
            cwd=cwd,
            env=os.environ | ENVIRONMENT | env,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    with ThreadPoolExecutor(2) as pool:
        yield lambda *args, cwd=None, env=None, stdin=None: pool.submit(run, args, cwd, env or {}, stdin)


@pytest.fixture(scope="session")
def python(start: Starter) -> Callable[..., str]:
    """`python(args...)`: the stdout of a process that must end well."""

    def succeed(*args: object, **options: Any) -> str:
        done = start(*args, **options).result()
        assert done.returncode == 0, done.stderr
        return done.stdout

    return succeed


@pytest.fixture(scope="session")
def scripts() -> Path:
    return Path(__file__).parent / "scripts"


@pytest.fixture(scope="session")
def forked(python: Callable[..., str], scripts: Path) -> Callable[..., dict[str, tuple[int, str, str]]]:
    """`forked({name: code}, cwd=)`: (exit code, stdout, stderr) of each, from processes of their own."""

    def run(pieces: dict[str, str], cwd: Path) -> dict[str, tuple[int, str, str]]:
        said = json.loads(python(scripts / "forked.py", cwd=cwd, stdin=json.dumps(pieces)))
        return {name: tuple(result) for name, result in said.items()}

    return run


@pytest.fixture(scope="session")
def no_transformers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process for which transformers is not installed."""
    folder = tmp_path_factory.mktemp("no_transformers")
    (folder / "sitecustomize.py").write_text(WITHOUT_TRANSFORMERS)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


@pytest.fixture
def registered() -> Iterator[None]:
    """For tests that call `unregister()`: registered again afterwards."""
    yield
    adopt_hf.register()


def make_model(**changes: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "vocab_size": 64,
        "n_positions": 16,
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return GPT2LMHeadModel(GPT2Config(**(config | changes)))


@pytest.fixture
def tiny_gpt2() -> Callable[..., GPT2LMHeadModel]:
    return make_model


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., TrainingArguments]:
    """`arguments(**fields)`: TrainingArguments with optim="adopt" for a quiet run of three steps on the CPU."""

    def make(**fields: Any) -> TrainingArguments:
        defaults = {
            "output_dir": str(tmp_path / "out"),
            "optim": "adopt",
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 4,
            "max_steps": 3,
            "use_cpu": True,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        return TrainingArguments(**(defaults | fields))

    return make


@pytest.fixture
def make_trainer(arguments: Callable[..., TrainingArguments]) -> Callable[..., Trainer]:
    """`make_trainer(args, **options)`: a Trainer of a new, always equal tiny GPT-2 on 16 sequences."""

    def make(args: TrainingArguments | None = None, **options: Any) -> Trainer:
        tokens = torch.randint(64, (16, 8), generator=torch.Generator().manual_seed(1))
        data = [{"input_ids": row, "labels": row} for row in tokens]
        return Trainer(**({"model": make_model(), "args": args or arguments(), "train_dataset": data} | options))

    return make
