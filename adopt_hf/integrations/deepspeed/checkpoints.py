"""DeepSpeed's checkpoints: ADOPT's state apart from other optimizers', step counts, and the options of each group."""

import glob
import inspect
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import torch

from adopt_hf.identity import is_adopt_optimizer
from adopt_hf.integrations import guard
from adopt_hf.integrations.deepspeed import internals
from adopt_hf.state import differences
from adopt_hf.state.saved_groups import WEIGHTS_ONLY, is_adopt, translated_group

COUNTS = "adopt_tensor_steps"  # in the universal_checkpoint_info of a checkpoint: name -> step count

NO_NVME_RESUME = (
    "the optimizer is ADOPT on NVMe, and DeepSpeed does not load all of its state from a checkpoint: the step counts, "
    'and the tensors that are too small to be swapped, would start again. Write "device": "cpu" in "offload_optimizer" '
    f"for a run that has to be resumed, or go on with {WEIGHTS_ONLY}. DeepSpeed does not find the weights in "
    "such a checkpoint. They are in its model.safetensors, which the Trainer saves with "
    '"stage3_gather_16bit_weights_on_model_save": true'
)
WEIGHTS_OF_ENGINE = "A call of the engine takes the weights only: load_checkpoint(..., load_optimizer_states=False)"
TO_UNIVERSAL = (
    "python -m deepspeed.checkpoint.ds_to_universal --input_folder CHECKPOINT/global_stepN --output_folder "
    "CHECKPOINT/global_stepN_universal"
)
OTHER_WORLD_SIZE = (
    f"To go on with another number of processes, make a universal checkpoint of it: `{TO_UNIVERSAL}`, and set "
    '"checkpoint": {"load_universal": true} in the DeepSpeed config.'
)


def save_checkpoint(original: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
    """Write the step counts in `DeepSpeedEngine.save_checkpoint` where a universal checkpoint keeps them."""
    if is_adopt_optimizer(getattr(engine, "basic_optimizer", None)):
        info = internals.universal_checkpoint_info(engine.module)
        counts = _step_counts(engine)
        info.pop(COUNTS, None)
        if len(set(counts.values())) > 1:
            info[COUNTS] = counts
    return original(engine, *args, **kwargs)


def load_checkpoint(original: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
    """Keep ADOPT's state and that of other optimizers apart in `DeepSpeedEngine.load_checkpoint`.

    The error about another world size says what to do. After loading a universal checkpoint, this restores what
    DeepSpeed does not: each param group's own hyperparameters, and the step counts of tensors that got their first
    gradient late.

    Raises:
        ValueError: If the checkpoint holds the state of another optimizer, or that of ADOPT and the engine has another
            optimizer. Nothing has been loaded.
        RuntimeError: If the optimizer is on NVMe, because DeepSpeed does not load all of its state from there.
    """
    optimizer: Any = getattr(engine, "basic_optimizer", None)
    call = inspect.signature(original).bind(engine, *args, **kwargs)
    call.apply_defaults()
    asked = call.arguments
    loads_state = bool(asked.get("load_optimizer_states")) and not asked.get("load_module_only")
    saved = saved_groups(engine, str(asked["load_dir"]), asked["tag"]) if loads_state and optimizer is not None else []
    if not is_adopt_optimizer(optimizer):
        if is_adopt(saved):
            refused = guard.refusal(type(optimizer).__name__, "the state in the checkpoint")
            raise ValueError(f"{refused}. {WEIGHTS_OF_ENGINE}")
        return original(engine, *args, **kwargs)
    if engine.zero_nvme_offload_optimizer() and loads_state:
        raise RuntimeError(NO_NVME_RESUME)
    universal, here = engine.load_universal_checkpoint(), optimizer.param_groups
    if universal and saved and len(saved) != len(here):
        raise ValueError(
            f"the universal checkpoint has {len(saved)} param groups and the engine's ADOPT has {len(here)}: make the "
            "groups as they were made for the checkpoint"
        )
    try:
        groups = [translated_group(there, group) for there, group in zip(saved, here, strict=False)]
    except ValueError as error:
        raise ValueError(f"{error}. {WEIGHTS_OF_ENGINE}") from error
    engine.adopt_arrivals.forget()
    before = differences.numbers(optimizer.param_groups)
    try:
        load_path, client_state = original(engine, *args, **kwargs)
    except internals.zero_error() as error:
        if "world size" in str(error):
            raise type(error)(f"{error} {OTHER_WORLD_SIZE}") from error
        raise
    if groups and universal:
        for group, there in zip(here, groups, strict=True):
            group.update({name: value for name, value in there.items() if name != "params"})
        _set_step_counts(engine, (client_state or {}).get(internals.UNIVERSAL_INFO, {}).get(COUNTS, {}))
    differences.warn(before, optimizer.param_groups)
    return load_path, client_state


def _step_counts(engine: Any) -> dict[str, float]:
    """Return the step count of each tensor that a partition holds, by name."""
    names = {p: name for name, p in engine.module.named_parameters()}
    optimizer = engine.basic_optimizer
    counts: dict[str, float] = {}
    for group in internals.zero_flat_groups(engine.optimizer):
        state = optimizer.state.get(group.flat)
        if state:
            steps = optimizer.partitions[group.flat].steps(state)
            counts |= {names[tensor]: t for tensor, t in zip(group.tensors, steps, strict=True)}
    return counts


def _set_step_counts(engine: Any, counts: dict[str, float]) -> None:
    names = {p: name for name, p in engine.module.named_parameters()}
    for group in internals.zero_flat_groups(engine.optimizer):
        state = engine.basic_optimizer.state.get(group.flat)
        if state and counts:
            state["tensor_steps"] = [counts[names[tensor]] for tensor in group.tensors]


# -- what a checkpoint holds -------------------------------------------------------------------------------------------


def saved_groups(engine: Any, folder: str, tag: str | None) -> list[dict[str, Any]]:
    """Return the param groups in the checkpoint `tag` in `folder`, or in the latest one if `tag` is None.

    The list is empty if DeepSpeed will not find the file either. DeepSpeed then says what is missing.
    """
    universal = engine.load_universal_checkpoint()
    latest = os.path.join(folder, "latest_universal" if universal else "latest")
    if tag is None and os.path.isfile(latest):
        with open(latest, encoding="utf-8") as file:
            tag = file.read().strip()
    folder = os.path.join(folder, str(tag))
    names = (os.path.join("zero", "optimizer_state.pt"),) if universal else ("*optim_states.pt", "*model_states.pt")
    for name in names:
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), name)))[:1]:
            saved = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=False)
            return _groups_in(saved)
    return []


def _groups_in(saved: Any) -> list[dict[str, Any]]:
    """Return the param groups in a file of a checkpoint. Each ZeRO stage has them in other dictionaries."""
    while isinstance(saved, Mapping) and "param_groups" not in saved:
        inside = [saved[key] for key in ("optimizer_state_dict", "base_optimizer_state", "optimizer") if key in saved]
        saved = inside[0] if inside else None
    return list(saved["param_groups"]) if isinstance(saved, Mapping) else []
