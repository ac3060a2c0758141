"""Which folder may be written to, which checkpoint a run goes on from, and whether that one fits."""

import json
from pathlib import Path

from transformers import GPT2Config, Trainer, TrainingArguments
from transformers.trainer_callback import TrainerState

from adopt_hf.integrations.checkpoints import check_optimizer
from examples.shared import launch
from examples.shared.errors import InputError

STATE = "trainer_state.json"  # both scripts write it, in the Trainer's format
RUN = "run.yaml"  # what a run was started with
# What a run leaves in its folder; any of it means that the folder is taken.
TRACES = ("checkpoint-*", RUN, STATE, "config.json", "*.safetensors", launch.PICTURE, "runs")
# The file with the random states tells which script wrote a checkpoint.
RANDOM_STATES = {"train.py": "rng_state*.pth", "train_accelerate.py": "random_states_*.pkl"}
# Differences that do not make it another model.
NOT_THE_MODEL = {"transformers_version", "dtype", "use_cache", "architectures", "_name_or_path", "pad_token_id"}


def has(folder: Path, *patterns: str) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)


def choose(args: TrainingArguments, script: str) -> Path | None:
    """Return the checkpoint to go on from, or None for a new run.

    Args:
        args: `resume_from_checkpoint` is a path, or 'true' or 'last' for the newest complete one in `output_dir`. A new
            run needs an `output_dir` that holds no run.
        script: the script that asks. The two write different files.

    Raises:
        AlreadyFinishedError: If no step is left to do, and the model is written.
    """
    checkpoint = launch.to_go_on_from(args, TRACES)
    if checkpoint is None:
        return None
    try:
        check_optimizer(checkpoint, Trainer.get_optimizer_cls_and_kwargs(args)[0])
    except ValueError as error:
        raise InputError(str(error)) from None
    launch.check_not_finished(checkpoint, args)
    if not has(checkpoint, RANDOM_STATES[script]):
        other = next(name for name in RANDOM_STATES if name != script)
        raise InputError(f"checkpoint {checkpoint} was written by {other}; resume it with that script")
    return checkpoint


def check_model(checkpoint: Path, config: GPT2Config) -> None:
    """Raise InputError if `checkpoint` holds another model than `config` describes, naming what differs."""
    saved = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    if saved.get("model_type") != config.model_type:
        raise InputError(f"checkpoint {checkpoint} is another model: a {saved.get('model_type')}, not a GPT-2")
    theirs, ours = GPT2Config.from_dict(saved).to_dict(), config.to_dict()
    differ = [
        f"{name} is {theirs.get(name)!r} there and {ours.get(name)!r} here"
        for name in sorted((theirs.keys() | ours.keys()) - NOT_THE_MODEL)
        if theirs.get(name) != ours.get(name)
    ]
    if differ:
        raise InputError(f"checkpoint {checkpoint} is another model: {', '.join(differ)}")


def read_state(checkpoint: Path) -> TrainerState:
    return TrainerState.load_from_json(str(checkpoint / STATE))
