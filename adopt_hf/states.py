"""Saved states of other ADOPTs and of earlier versions, in this one's terms."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from adopt_hf import algorithm, moments

# Options of torch-adopt's and timm's groups: how the update is computed, and variants of it that ADOPT here has not.
FOREIGN_IMPLEMENTATION = {"foreach", "fused", "capturable", "max_lr_snapshot"}
# What the groups of Adam, NAdam, RAdam and DeepSpeed's and apex's fused Adam have.
OF_ADAM = {"amsgrad", "momentum_decay", "decoupled_weight_decay", "bias_correction"}
KEPT = (  # as they are here, or are not
    *("backend", "capturable"),
    *("state_bits", "block_size", "float32_state", "bf16_stochastic_round"),
)
FOREIGN_VARIANT = {"differentiable", "caution", "corrected_weight_decay"}


def is_adopt(groups: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether `groups`, the param groups of an optimizer or of a saved state, are those of ADOPT."""
    return any("clip_exp" in group for group in groups)


def translated_group(saved: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """The param group `saved` in this class's terms; what it lacks is taken from `here`."""
    if OF_ADAM & saved.keys():
        raise ValueError(
            "this is the state of Adam or one of its kind (AdamW, NAdam, RAdam), whose exp_avg averages raw gradients "
            "and not ADOPT's normalised ones: start ADOPT without it"
        )
    group = {}
    for name, value in saved.items():
        if name in FOREIGN_VARIANT and value:
            raise ValueError(f"the saved state was trained with {name}={value!r}, which ADOPT here does not have")
        if name not in FOREIGN_VARIANT | FOREIGN_IMPLEMENTATION:
            group["decouple" if name == "decoupled" else name] = value
    kept = {name: here[name] for name in here if name not in ("params", "param_names")}
    for name in KEPT:
        group.pop(name, None)
    return kept | group | algorithm.check_group(group)


def translated_state(saved: Any) -> Any:
    """The state of one parameter with `step` as a 0-d float32 CPU tensor."""
    if not isinstance(saved, dict) or not saved:
        return saved
    missing = min(({"step", *names} - saved.keys() for names in (moments.FLOATS, moments.CODES)), key=len)
    if missing:
        raise ValueError(
            f"the saved state has {', '.join(map(str, saved))} but not {', '.join(sorted(missing))}: "
            "it is not the state of an ADOPT optimizer"
        )
    step = float(saved["step"])
    if not 0 <= step < math.inf:
        raise ValueError(f"the saved state has step {step}, which must be a finite number >= 0")
    return saved | {"step": torch.tensor(step, dtype=torch.float32, device="cpu")}


def check_blocks(saved: Mapping[str, Any], groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise ValueError if `saved` has moments in 8 bits in blocks of another size than the `groups` here ask for."""
    for there, here in zip(saved["param_groups"], groups, strict=False):
        sizes = there.get("block_size", here["block_size"]), here["block_size"]
        in_blocks = any("scales" in saved["state"].get(i, {}) for i in there["params"])
        if in_blocks and here["state_bits"] == 8 and sizes[0] != sizes[1]:
            raise ValueError(
                f"the saved state has blocks of {sizes[0]} elements and this optimizer has block_size={sizes[1]}: "
                f"write block_size={sizes[0]}, or load it with state_bits=32"
            )
