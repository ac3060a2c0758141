"""Which folder may be written to, which checkpoint a run goes on from, and whether that one fits."""

import json
import re
import shutil
from pathlib import Path

from arguments import InputError
from transformers import GPT2Config
from transformers.trainer_callback import TrainerState

STATE = "trainer_state.json"  # both scripts write it, in the Trainer's format, and last
RUN = "run.yaml"  # what a run was started with
# What a run leaves in its folder; any of it means that the folder is taken.
TRACES = ("checkpoint-*", RUN, STATE, "config.json", "*.safetensors", "loss.png", "runs")
WEIGHTS = ("*.safetensors", "pytorch_model*", "global_step*")  # global_step*: DeepSpeed
OPTIMIZER = ("optimizer*", "global_step*")
# The file with the random states tells which script wrote a checkpoint.
RANDOM_STATES = {"train.py": "rng_state*.pth", "train_accelerate.py": "random_states_*.pkl"}
# Differences that do not make it another model.
NOT_THE_MODEL = {"transformers_version", "dtype", "use_cache", "architectures", "_name_or_path", "pad_token_id"}


def has(folder: Path, *patterns: str) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)


def step_of(checkpoint: Path) -> int:
    match = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(match[1]) if match else -1


def in_folder(output_dir: Path) -> list[Path]:
    """The checkpoints in `output_dir`, complete or not, oldest first."""
    return sorted((p for p in output_dir.glob("checkpoint-*") if p.is_dir() and step_of(p) >= 0), key=step_of)


def missing_part(checkpoint: Path) -> str | None:
    """What `checkpoint` lacks, None if it is complete. A run killed while it saved leaves an incomplete one."""
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return f"no complete {STATE}"
    for part, patterns in (("weights", WEIGHTS), ("optimizer", OPTIMIZER), ("config", ("config.json",))):
        if not has(checkpoint, *patterns):
            return f"no {part}"
    if not has(checkpoint, *RANDOM_STATES.values()):
        return "no random states"
    return None


def choose(output_dir: Path, asked: str | None, script: str) -> Path | None:
    """The checkpoint to go on from, None to start anew.

    Args:
        output_dir: the run's folder; to start anew, it must not hold a run.
        asked: `--resume_from_checkpoint`: a path, or 'true' or 'last' for the newest complete one in `output_dir`.
        script: which one asks; the two write different files.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"output_dir {output_dir} is a file; choose another --output_dir")
    if asked is None or asked.lower() == "false":
        if traces := sorted(p.name for pattern in TRACES for p in output_dir.glob(pattern)):
            raise InputError(
                f"output_dir {output_dir} holds another run ({traces[0]}); choose another --output_dir, "
                "or go on with it by --resume_from_checkpoint last"
            )
        return None
    if asked.lower() in ("true", "last"):
        found = in_folder(output_dir)
        complete = [checkpoint for checkpoint in found if missing_part(checkpoint) is None]
        if not complete:
            why = f"{found[-1].name} has {missing_part(found[-1])}" if found else "there are none"
            raise InputError(f"no complete checkpoint to resume from in output_dir {output_dir}: {why}")
        checkpoint = complete[-1]
    else:
        checkpoint = Path(asked)
        if not checkpoint.is_dir():
            raise InputError(
                f"resume_from_checkpoint {asked} does not exist; pass the folder of a checkpoint, or 'last' for the "
                f"newest in {output_dir}"
            )
        if lacks := missing_part(checkpoint):
            raise InputError(f"resume_from_checkpoint {asked} is not a complete checkpoint: {lacks}")
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


def rotate(output_dir: Path, limit: int | None) -> None:
    """Remove the oldest checkpoints until `limit` are left."""
    if limit is not None and limit > 0:
        for checkpoint in in_folder(output_dir)[:-limit]:
            shutil.rmtree(checkpoint)
