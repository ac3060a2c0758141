"""Settings and functions of DeepSpeed that are written for Adam: each keeps ADOPT as it is, or is refused by name.

DeepSpeed itself mostly asserts that the optimizer is its own Adam, which `python -O` does not do.
"""

import inspect
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from adopt_hf.integrations import compat
from adopt_hf.optimizer import is_adopt_optimizer

logger = logging.getLogger("adopt_hf")


def offload_device(config: Mapping[str, Any]) -> str:
    """Return where the DeepSpeed config has the optimizer: "none", "cpu" or "nvme"."""
    optimization = config.get("zero_optimization")
    if not isinstance(optimization, Mapping):  # true and false are allowed
        return "none"
    target = optimization.get("offload_optimizer") or {}
    device = target.get("device") or "none"
    return "cpu" if device == "none" and optimization.get("cpu_offload") else str(device)


def offloads(config: Mapping[str, Any]) -> bool:
    """Return whether the DeepSpeed config offloads the optimizer."""
    return offload_device(config) != "none"


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


def replacements(config: Mapping[str, Any]) -> list[str]:
    """Return, for each setting of a DeepSpeed config with which ADOPT would not be what steps, a sentence about it."""
    found = []
    for path, asks, what in REPLACEMENTS:
        value: Any = config
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is None or value == "auto" or not asks(value):
            continue
        if path[-1] == "ratio" and not offloads(config):
            continue
        line = f'"{path[-1]}": {json.dumps(value, default=str)}'
        where = "".join(f' in "{key}"' for key in reversed(path[:-1]))
        found.append(f"{line}{where} of the DeepSpeed config {what}: remove that line")
    return found


_told_of_betas = False


def one_cycle(original: Any, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    """The constructor of DeepSpeed's OneCycle, which leaves the betas of an ADOPT as they are.

    Raises:
        ValueError: `cycle_momentum` is set to true.
    """
    global _told_of_betas
    call = inspect.signature(original).bind(scheduler, *args, **kwargs)
    inner = call.arguments["optimizer"]
    while not is_adopt_optimizer(inner) and hasattr(inner, "optimizer"):
        inner = inner.optimizer
    if is_adopt_optimizer(inner):
        if call.arguments.get("cycle_momentum"):
            raise ValueError(
                "the optimizer is ADOPT, and cycle_momentum=True makes DeepSpeed's OneCycle scheduler set beta2 to 0.99"
                ' and, with decay_mom_rate, beta1 to more than 1: write "cycle_momentum": false in the params of the '
                '"scheduler" block (ADOPT then keeps its own betas), or use torch.optim.lr_scheduler.OneCycleLR, which '
                "only cycles beta1"
            )
        if "cycle_momentum" not in call.arguments and not _told_of_betas:
            _told_of_betas = True
            logger.warning(
                "DeepSpeed's OneCycle scheduler only cycles the learning rate of ADOPT: its cycle_momentum, which is "
                "on by default, would set beta2 to 0.99. ADOPT keeps its own betas, as with cycle_momentum=False"
            )
        call.arguments["cycle_momentum"] = False
    original(*call.args, **call.kwargs)


def offload_states(original: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
    """`DeepSpeedEngine.offload_states` that refuses what stage 3 only does with FusedAdam.

    Raises:
        ValueError: it is asked to move the moments or the float32 weights of ADOPT in stage 3.
    """
    if is_adopt_optimizer(getattr(engine, "basic_optimizer", None)) and engine.zero_optimization_stage() == 3:
        call = inspect.signature(original).bind(engine, *args, **kwargs)
        moved = compat.states_of_fused_adam(engine, call.arguments.get("include"))
        if moved:
            raise ValueError(
                f"the optimizer is ADOPT, and offload_states would move {' and '.join(moved)}, which DeepSpeed does in "
                "stage 3 with its FusedAdam only: leave them out of `include` (lp_params, lp_grads and "
                "contiguous_grad_buffer work), use stage 2, or offload the optimizer (offload_optimizer)"
            )
    return original(engine, *args, **kwargs)
