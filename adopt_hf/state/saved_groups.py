"""Recognise the param groups of a saved ADOPT, and translate them to this class's options."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from adopt_hf.hyperparameters import HYPERPARAMETERS, check_group, keep_running_mean, of_group
from adopt_hf.state import rounding

# Options of torch-adopt's and timm's groups: how the update is computed, and variants that this ADOPT does not have.
FOREIGN_IMPLEMENTATION = {"foreach", "fused", "capturable", "max_lr_snapshot"}
KEPT = (*of_group("execution", "storage"), "float32_state")  # a load does not change these
FOREIGN_VARIANT = {"differentiable", "caution", "corrected_weight_decay"}
# torch's Adam, AdamW, NAdam and RAdam write these into the groups of every state that they load, also of ADOPT's.
OF_ADAM = {"amsgrad", "momentum_decay", "decoupled_weight_decay", "bias_correction"}
# Parts of an error message: how to continue if an optimizer refuses the state of another one.
CONVERT = "convert the checkpoint (`adopt-hf convert CHECKPOINT --to {}`)"
WEIGHTS_ONLY = (
    "the weights only: load the model from the checkpoint (from_pretrained), and start the new run without "
    "resume_from_checkpoint, load_state or load_state_dict"
)


def is_adopt(groups: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether `groups`, the param groups of an optimizer or of a saved state, are those of ADOPT.

    The groups of this class and of timm's Adopt have `clip_exp`. Those of torch-adopt have `decouple` (`decoupled` in
    its first version) and `maximize`; Prodigy's and D-Adaptation's have `decouple` only.
    """
    groups = list(groups)
    return bool(groups) and all(
        not OF_ADAM & group.keys()
        and ("clip_exp" in group or ("maximize" in group and ("decouple" in group or "decoupled" in group)))
        for group in groups
    )


def plain(value: Any) -> Any:
    """Return an entry of a param group with Python's own numbers, strings, tuples, lists and dicts.

    Schedules write numpy numbers, and configuration libraries have their own lists and numbers.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str) or isinstance(value, Tensor):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(x) for key, x in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        items = [plain(x) for x in value]
        return items if isinstance(value, list) else tuple(items)
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):  # an array or a bool of numpy
        return value.tolist()
    return value


def _not_adopts(group: Mapping[str, Any]) -> str:
    keys = ", ".join(sorted(str(key) for key in group if key not in ("params", "param_names"))) or "no options"
    if OF_ADAM & group.keys():
        why = "this is the state of Adam or one of its kind (AdamW, NAdam, RAdam), or has been loaded into one"
    else:
        why = "ADOPT's have clip_exp (timm's too), or decouple and maximize (torch-adopt's)"
    return (
        f"the saved state is not ADOPT's. Its param groups have {keys}: {why}. Another optimizer's moments are means "
        "of other numbers (Adam's of raw gradients, ADOPT's of normalised ones). If it is AdamW's, "
        f"{CONVERT.format('adopt')}; or start ADOPT without this state, with {WEIGHTS_ONLY}"
    )


def translated_group(saved: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """Return the saved param group with the options of this class.

    Options that `saved` lacks are taken from `here`, except `beta2_warmup`: a state without it comes from a run without
    a warm-up.

    Args:
        saved: The saved param group.
        here: The param group of the optimizer that loads the state.

    Raises:
        ValueError: If the group is not ADOPT's, or has an option that this ADOPT does not have.
    """
    if not is_adopt([saved]):
        raise ValueError(_not_adopts(saved))
    group = {}
    for name, value in saved.items():
        if name in FOREIGN_VARIANT and value:
            raise ValueError(
                f"the saved state was trained with {name}={value!r}, which this ADOPT does not have: start it without "
                f"the state, with {WEIGHTS_ONLY}"
            )
        if name not in FOREIGN_VARIANT | FOREIGN_IMPLEMENTATION:
            group["decouple" if name == "decoupled" else name] = value
    keep_running_mean(group)
    group.setdefault("beta2_warmup", False)  # torch-adopt and timm have none
    kept = {name: here[name] for name in here if name not in ("params", "param_names", rounding.TENSOR_KEY)}
    for name in KEPT:
        group.pop(name, None)
    if rounding.TENSOR_KEY in group:
        group[rounding.TENSOR_KEY] = HYPERPARAMETERS["seed"].check(rounding.TENSOR_KEY, group[rounding.TENSOR_KEY])
    return kept | group | check_group(group)
