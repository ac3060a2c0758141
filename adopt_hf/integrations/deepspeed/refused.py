"""Settings of a DeepSpeed config with which ADOPT would not make the step. Each is a row, and is refused by name.

DeepSpeed itself mostly asserts that the optimizer is its own Adam. `python -O` skips these assertions.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Replacement(NamedTuple):
    """A setting with which DeepSpeed steps with another optimizer than the given one, or assumes that it is Adam."""

    path: tuple[str, ...]  # the keys that lead to the setting in the config
    asks: Callable[[Any], bool]  # returns whether a value asks for it
    what: str  # what DeepSpeed does then: the end of a sentence
    if_offloaded: bool = False  # whether the setting only has an effect if the optimizer is offloaded


REPLACEMENTS = (
    Replacement(
        ("zero_optimization", "zenflow"),
        lambda value: value is not None,
        "makes DeepSpeed train with AdamWs of its own (ZenFlow)",
    ),
    Replacement(
        ("zero_optimization", "offload_optimizer", "super_offload"),
        bool,
        "makes DeepSpeed train with DeepSpeedCPUAdam in another process (SuperOffload)",
    ),
    Replacement(
        ("zero_optimization", "offload_optimizer", "ratio"),
        lambda value: value != 1,
        "makes DeepSpeed train a part of the parameters with torch's AdamW on the GPU (Twin-Flow)",
        if_offloaded=True,
    ),
    *(
        Replacement(
            ("zero_optimization", key),
            lambda value: value not in (None, False, -1),
            "divides the state among some of the processes (MiCS), so that ADOPT cannot count the steps of a tensor",
        )
        for key in ("mics_shard_size", "mics_hierarchical_params_gather")
    ),
    Replacement(
        ("zero_optimization", "elastic_checkpoint"),
        bool,
        "makes DeepSpeed write checkpoints whose state only its FusedAdam can load; use a universal checkpoint "
        "(deepspeed.checkpoint.ds_to_universal) for another number of processes",
    ),
    *(
        Replacement(
            (precision, key),
            bool,
            "makes DeepSpeed keep 16-bit master weights or moments, which only its DeepSpeedCPUAdam supports; "
            "ADOPT's own state_bits=16 keeps the moments in bfloat16",
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
