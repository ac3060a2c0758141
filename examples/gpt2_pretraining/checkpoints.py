"""Choose the checkpoint to go on from, and check that it fits the run."""

import json
from pathlib import Path

from transformers import GPT2Config, Trainer, TrainingArguments
from transformers.trainer_callback import TrainerState

from adopt_hf.integrations.checkpoints import check_optimizer
from examples.shared import launch
from examples.shared.errors import InputError

STATE = "trainer_state.json"  # both scripts write it, in the Trainer's format
RUN = "run.yaml"  # the settings of a run that differ from the defaults
# The files that a run leaves in its folder. If one of them exists, the folder is taken.
TRACES = ("checkpoint-*", RUN, STATE, "config.json", "*.safetensors", launch.PICTURE, "runs")
# The name of the file with the random states shows which script wrote a checkpoint.
RANDOM_STATES = {"train.py": "rng_state*.pth", "train_accelerate.py": "random_states_*.pkl"}
# Fields of a model's config that may differ.
NOT_THE_MODEL = {"transformers_version", "dtype", "use_cache", "architectures", "_name_or_path", "pad_token_id"}


def has(folder: Path, *patterns: str) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)


def choose(args: TrainingArguments, script: str) -> Path | None:
    """Return the checkpoint to go on from, or None for a new run.

    Args:
        args: The training arguments. `launch.to_go_on_from` describes `resume_from_checkpoint`.
        script: The file name of the script that runs. The two scripts write different checkpoints.

    Raises:
        InputError: If the checkpoint cannot be resumed by this run.
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
    """Raise InputError, which names the differences, if `checkpoint` holds another model than `config` describes."""
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
