"""Settings of a DeepSpeed config with which ADOPT would not be what steps: a row each, refused by name.

DeepSpeed itself mostly asserts that the optimizer is its own Adam, which `python -O` does not do.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Replacement(NamedTuple):
    """A setting with which DeepSpeed does not step with the optimizer that it was given, or assumes Adam's inside."""

    path: tuple[str, ...]  # to the setting, in the config
    asks: Callable[[Any], bool]  # whether a value asks for it
    what: str  # DeepSpeed does then


REPLACEMENTS = (
    Replacement(
        ("zero_optimization", "zenflow"),
        lambda value: value is not None,
        "makes DeepSpeed step with AdamWs of its own (ZenFlow)",
    ),
    Replacement(
        ("zero_optimization", "offload_optimizer", "super_offload"),
        bool,
        "makes DeepSpeed step with DeepSpeedCPUAdam in a process of its own (SuperOffload)",
    ),
    Replacement(
        ("zero_optimization", "offload_optimizer", "ratio"),
        lambda value: value != 1,
        "makes DeepSpeed step a part of the parameters with torch's AdamW on the GPU (Twin-Flow)",
    ),
    *(
        Replacement(
            ("zero_optimization", key),
            lambda value: value not in (None, False, -1),
            "divides the state among some of the processes (MiCS), where ADOPT cannot count the steps of a tensor",
        )
        for key in ("mics_shard_size", "mics_hierarchical_params_gather")
    ),
    Replacement(
        ("zero_optimization", "elastic_checkpoint"),
        bool,
        "makes DeepSpeed write checkpoints whose state only its FusedAdam can load; a universal checkpoint "
        "(deepspeed.checkpoint.ds_to_universal) serves another number of processes",
    ),
    *(
        Replacement(
            (precision, key),
            bool,
            "makes DeepSpeed keep 16-bit master weights or moments, which only its DeepSpeedCPUAdam steps; ADOPT's own "
            "state_bits=16 keeps the moments in bfloat16",
        )
        for precision, key in (
            ("bf16", "bf16_master_weights_and_grads"),
            ("bf16", "bf16_optimizer_states"),
            ("bfloat16", "bf16_master_weights_and_grads"),
            ("bfloat16", "bf16_optimizer_states"),
            ("fp16", "fp16_master_weights_and_grads"),
        )
    ),
    Replacement(
        ("compile", "offload_opt_states"),
        bool,
        "makes DeepSpeed move the moments of its own Adam between GPU and CPU (DeepCompile)",
    ),
    Replacement(
        ("msamp",),
        lambda value: bool(value.get("enabled", True)) if isinstance(value, Mapping) else bool(value),
        "makes MS-AMP replace the optimizer by an Adam of its own",
    ),
)
