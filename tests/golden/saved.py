"""The files that an earlier commit wrote, and what a run does that goes on from them.

optimizer state     `torch.save(optimizer.state_dict())` after `HALF` steps of each row of `SAVED`
pickles             the optimizer and its parameters, after `HALF` steps of some of them
checkpoint-3        a checkpoint of the Trainer with complete.json, training_args.bin and all else
training arguments  `training_args.bin` of the other optim names

A run that goes on from a file gives the rows of the uninterrupted run, which are in trajectories.json.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

import adopt_hf
from adopt_hf.integrations.checkpoints import MarkComplete
from tests.golden import files
from tests.golden.cases import CASES, HALF, SAVED, SHAPES, Case, Run, row
from tests.golden.tensors import digest, first_numbers, values

NAME = "saved"
FOLDER = files.FOLDER / "saved_files"
CHECKPOINT = FOLDER / f"checkpoint-{HALF}"
PICKLED = ("saved, 32 bits", "saved, ADOPT with all options", "saved, bfloat16 rounded", "saved, layerwise")
# How a user makes an optimizer that is to load a state: its storage is kept, and its numbers come from the state.
STORAGE = ("backend", "capturable", "state_bits", "block_size", "bf16_stochastic_round")
OTHER_NUMBERS = {"lr": 0.5, "betas": (0.1, 0.2)}
FORMATS: dict[str, dict[str, Any]] = {
    "32 bits": {},
    "16 bits": {"state_bits": 16},
    "8 bits": {"state_bits": 8},
}
CONVERTED = (
    "saved, 32 bits, large",
    "saved, 8 bits",
    "saved, flat",
    "saved, flat, 32 bits",
    "saved, bfloat16 rounded",
)
OPTIMS = ("adopt_8bit", "adopt_layerwise")  # adopt is that of the checkpoint


def case_of(name: str) -> Case:
    """Return the case of that name."""
    return next(case for case in CASES if case.name == name)


def path_of(case: Case, suffix: str) -> Path:
    """Return the path of a file of `case`."""
    return FOLDER / f"{case.name.removeprefix('saved, ').replace(',', '').replace(' ', '_')}.{suffix}"


# -- optimizer states and pickles --------------------------------------------------------------------------------------


def save_state(case: Case) -> None:
    """Write the state_dict of a case."""

    def at_half(run: Run) -> Run:
        torch.save(run.optimizer.state_dict(), path_of(case, "pt"))
        return run

    case.run("reference", at_half)


def contents(case: Case) -> tuple[Any, Any]:
    """Return what the file of a case holds, and what is written now, with digests instead of tensors."""
    found: list[Any] = []

    def at_half(run: Run) -> Run:
        for state_dict in (torch.load(path_of(case, "pt"), weights_only=True), run.optimizer.state_dict()):
            found.append(
                {
                    "state": {
                        str(i): {
                            k: first_numbers(x) + " " + digest({k: x}) if isinstance(x, Tensor) else x
                            for k, x in state.items()
                        }
                        for i, state in state_dict["state"].items()
                    },
                    "param_groups": state_dict["param_groups"],
                }
            )
        return run

    case.run("reference", at_half)
    return found[0], found[1]


def resume_state(case: Case) -> list[str]:
    """Return the rows of a run whose optimizer is replaced by another one, which loads the file."""

    def at_half(run: Run) -> Run:
        if hasattr(run.optimizer, "release"):
            run.optimizer.release()
        kept = {name: value for name, value in case.options.items() if name in STORAGE}
        optimizer = run.held.optimizer_of(OTHER_NUMBERS | kept | {"backend": "reference"})
        optimizer.load_state_dict(torch.load(path_of(case, "pt"), weights_only=True))
        return run._replace(optimizer=optimizer)

    return case.run("reference", at_half)


def save_pickle(case: Case) -> None:
    """Write a pickle of the optimizer and its parameters."""

    def at_half(run: Run) -> Run:
        path_of(case, "pickle").write_bytes(pickle.dumps((run.optimizer, run.params), protocol=4))
        return run

    case.run("reference", at_half)


def resume_pickle(case: Case) -> list[str]:
    """Return the rows of a run that goes on with what the file holds."""

    def at_half(run: Run) -> Run:
        optimizer, params = pickle.loads(path_of(case, "pickle").read_bytes())
        return Run(optimizer, params, run.held)

    return case.run("reference", at_half)


def convert(name: str, form: str, state_of: Callable[[Run], Any]) -> list[str]:
    """Return rows of a state that is loaded into another form of storage: as it is loaded, and after the steps.

    Args:
        name: The case that the state is of.
        form: A key of `FORMATS`.
        state_of: Returns the state.
    """
    loaded: list[str] = []

    def at_half(run: Run) -> Run:
        optimizer = run.held.optimizer_of(FORMATS[form] | {"backend": "reference"})
        optimizer.load_state_dict(state_of(run))
        loaded.append(row(optimizer, run.params))
        return run._replace(optimizer=optimizer)

    return loaded + case_of(name).run("reference", at_half)[HALF:]


def conversions() -> dict[str, list[str]]:
    """Return the rows of all conversions: of states in files, and of states of DTensors, which are not in files."""
    found = {}
    for form in FORMATS:
        for name in CONVERTED:
            path = path_of(case_of(name), "pt")
            found[f"{name} -> {form}"] = convert(name, form, lambda run, p=path: torch.load(p, weights_only=True))
        for rank in (0, 1):
            name = f"sharded, rank {rank} of 2: float32, 32 bits"
            found[f"{name} -> {form}"] = convert(name, form, lambda run: run.optimizer.state_dict())
    return found


# -- a checkpoint of the Trainer ---------------------------------------------------------------------------------------


class Rows(Dataset[dict[str, Tensor]]):
    """Numbers of batches, from which the model makes its gradients."""

    def __len__(self) -> int:
        return 2 * HALF

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"batch": torch.tensor(index)}


class Model(nn.Module):
    """A model whose gradients are exact: those of `values`, and no sum depends on the machine."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(values(0, SHAPES[2]))
        self.bias = nn.Parameter(values(1, SHAPES[1]))

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        seed = 1000 * (int(batch) + 1)
        losses = [(p * values(seed + i, p.shape, wide=True)).sum() for i, p in enumerate(self.parameters())]
        return {"loss": torch.stack(losses).sum()}


def arguments(output_dir: str, optim: str = "adopt", **fields: Any) -> TrainingArguments:
    """Return training arguments with nothing of this machine in them."""
    return TrainingArguments(
        output_dir=output_dir,
        optim=optim,
        optim_args="backend=reference, clip_exp=0.5",
        learning_rate=2.0**-6,
        weight_decay=0.125,
        max_grad_norm=0,
        per_device_train_batch_size=1,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **fields,
    )


def trained(output_dir: str, checkpoint: str | None = None, **fields: Any) -> list[str]:
    """Train with the Trainer, and return a row of the end."""
    torch.manual_seed(0)
    trainer = Trainer(
        Model(),
        arguments(output_dir, num_train_epochs=1, **fields),
        train_dataset=Rows(),
        callbacks=[MarkComplete()],
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    optimizer: Any = trainer.optimizer
    return [row(getattr(optimizer, "optimizer", optimizer), list(trainer.model.parameters()))]


def resume_checkpoint(folder: Path) -> list[str]:
    """Return a row of the end of a run that goes on from the checkpoint, of which `folder` gets a copy."""
    shutil.copytree(CHECKPOINT, folder / CHECKPOINT.name)
    return trained(str(folder), str(folder / CHECKPOINT.name), save_strategy="no")


def assigned(optim: str) -> TrainingArguments:
    """Return training arguments with a field that was assigned after construction, which therefore counts as set."""
    args = arguments("run", optim)
    args.adam_beta2 = 0.999
    return args


def kwargs_of(path: Path) -> dict[str, Any]:
    """Return what a file of training arguments makes of an optimizer, in the types of JSON."""
    args = torch.load(path, weights_only=False)
    cls, kwargs = adopt_hf.trainer_kwargs(args, Model())
    kwargs.pop("regroup", None)
    return json.loads(json.dumps({"optim": args.optim.value, "class": cls.__name__, "arguments": kwargs}))


def arguments_files() -> list[Path]:
    """Return the files of training arguments."""
    return [CHECKPOINT / "training_args.bin", *(FOLDER / f"training_args_{optim}.bin" for optim in OPTIMS)]


def write_files() -> None:
    """Write all files of users."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    for case in SAVED:
        save_state(case)
    for name in PICKLED:
        save_pickle(case_of(name))
    with TemporaryDirectory() as folder, _inside(folder):  # a relative path says nothing of this machine
        trained("run", save_steps=HALF, save_strategy="steps")
        shutil.copytree(Path("run") / CHECKPOINT.name, CHECKPOINT)
    for optim in OPTIMS:
        torch.save(assigned(optim), FOLDER / f"training_args_{optim}.bin")


def write() -> None:
    """Write the golden file of what the files lead to, as far as trajectories.json does not have it."""
    with TemporaryDirectory() as folder:
        whole = trained(folder, save_strategy="no")
    kwargs = {path.name: kwargs_of(path) for path in arguments_files()}
    files.write(NAME, {"conversions": conversions(), "the Trainer's run": whole, "training arguments": kwargs})


@contextmanager
def _inside(folder: str) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
