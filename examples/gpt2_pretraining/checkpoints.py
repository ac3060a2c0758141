"""Which folder may be written to, which checkpoint a run goes on from, and whether that one fits."""

import json
import logging
from pathlib import Path

from arguments import InputError
from transformers import GPT2Config
from transformers.trainer_callback import TrainerState

from adopt_hf.integrations.checkpoints import last_complete, layout, layout_of, missing

logger = logging.getLogger("gpt2_pretraining")
STATE = "trainer_state.json"  # both scripts write it, in the Trainer's format
RUN = "run.yaml"  # what a run was started with
# What a run leaves in its folder; any of it means that the folder is taken.
TRACES = ("checkpoint-*", RUN, STATE, "config.json", "*.safetensors", "loss.png", "runs")
# The file with the random states tells which script wrote a checkpoint.
RANDOM_STATES = {"train.py": "rng_state*.pth", "train_accelerate.py": "random_states_*.pkl"}
# Differences that do not make it another model.
NOT_THE_MODEL = {"transformers_version", "dtype", "use_cache", "architectures", "_name_or_path", "pad_token_id"}


def has(folder: Path, *patterns: str) -> bool:
    return any(next(folder.glob(pattern), None) is not None for pattern in patterns)


def choose(output_dir: Path, asked: str | None, script: str) -> Path | None:
    """The checkpoint to go on from, None to start anew.

    Args:
        output_dir: the run's folder; to start anew, it must not hold a run.
        asked: `--resume_from_checkpoint`: a path, or 'true' or 'last' for the newest complete one in `output_dir`.
        script: which one asks; the two write different files.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"output_dir {output_dir} is a file; choose another --output_dir")
    traces = sorted(p.name for pattern in TRACES for p in output_dir.glob(pattern))
    if asked is None or asked.lower() == "false":
        if traces:
            raise InputError(
                f"output_dir {output_dir} holds another run ({traces[0]}); choose another --output_dir, "
                "or go on with it by --resume_from_checkpoint last"
            )
        return None
    if asked.lower() in ("true", "last"):
        checkpoint, skipped = last_complete(output_dir)
        if checkpoint is None:
            why = "; ".join(f"{p.name}: {reason}" for p, reason in skipped) or "there are none"
            raise InputError(
                f"no complete checkpoint to resume from in output_dir {output_dir} ({why}); start anew, in another "
                "--output_dir or after removing this one"
            )
        for incomplete, reason in skipped:
            logger.info("skipping %s, which is incomplete: %s", incomplete, reason)
    else:
        checkpoint = Path(asked)
        if not checkpoint.is_dir():
            raise InputError(
                f"resume_from_checkpoint {asked} does not exist; pass the folder of a checkpoint, or 'last' for the "
                f"newest in {output_dir}"
            )
        if traces and checkpoint.resolve().parent != output_dir.resolve():
            raise InputError(
                f"output_dir {output_dir} holds another run ({traces[0]}) than {asked} is of; choose another "
                "--output_dir, or go on with the one in it by --resume_from_checkpoint last"
            )
        if reason := missing(checkpoint):
            raise InputError(f"resume_from_checkpoint {asked} is not a complete checkpoint: {reason}")
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


def check_layout(checkpoint: Path) -> None:
    """Raise InputError if `checkpoint` was written in a launch mode whose files this run's cannot read."""
    theirs, ours = layout_of(checkpoint), layout()
    if theirs != ours:
        raise InputError(
            f"checkpoint {checkpoint} was written with another launcher config: its layout is {theirs!r}, this run's "
            f"{ours!r}"
        )


def read_state(checkpoint: Path) -> TrainerState:
    return TrainerState.load_from_json(str(checkpoint / STATE))
