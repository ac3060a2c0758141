"""What ADOPT has to know inside a DeepSpeed engine: which tensors have a gradient, and what their step counts are.

DeepSpeed shows an optimizer flat partitions. Where a tensor has no gradient it fills in zeros, or leaves an old one in
its place. Hooks on the model's own parameters bring back what is lost, so that every stage trains as one process.
"""

import functools
import glob
import os
from typing import Any

import torch

from adopt_hf.distributed.flat import Partition, Stretch
from adopt_hf.integrations import compat, guard
from adopt_hf.integrations.arrivals import Arrivals, Shared
from adopt_hf.optimizer import is_adopt_optimizer
from adopt_hf.state import differences, loading

COUNTS = "adopt_tensor_steps"  # in the universal_checkpoint_info of a checkpoint: name -> step count

NO_NVME_RESUME = (
    "DeepSpeed does not load the optimizer's state from a checkpoint when it is offloaded to NVMe: step counts, and "
    "what was too small to be swapped, would begin anew. Train with the optimizer on the CPU "
    "(offload_optimizer.device=cpu) where a run has to be resumed, or go on with "
    f"{loading.WEIGHTS_ONLY}. DeepSpeed does not find the weights in such a checkpoint; its model.safetensors, which "
    'the Trainer saves with "stage3_gather_16bit_weights_on_model_save": true, has them'
)

WEIGHTS_ONLY = "A call of the engine takes the weights only: load_checkpoint(..., load_optimizer_states=False)"

OTHER_WORLD_SIZE = (
    "To go on with another number of processes, make a universal checkpoint of it: "
    "`python -m deepspeed.checkpoint.ds_to_universal --input_folder CHECKPOINT/global_stepN --output_folder "
    'CHECKPOINT/global_stepN_universal`, and set "checkpoint": {"load_universal": true} in the DeepSpeed config.'
)


def follow(engine: Any) -> None:
    """Let the ADOPT of a DeepSpeed engine see which tensors have a gradient, and count their steps one by one.

    All processes of the engine call this.

    Raises:
        ValueError: If the state is on NVMe and has fewer than 32 bits.
    """
    optimizer = engine.basic_optimizer
    bits = {group["state_bits"] for group in optimizer.param_groups} - {32}
    if bits and is_on_nvme(engine):
        raise ValueError(
            f"state_bits={min(bits)} with the optimizer on NVMe: DeepSpeed reads the moments back as float32 numbers, "
            'whatever they were, as Adam\'s are. Write state_bits=32, or "device": "cpu" in "offload_optimizer"'
        )
    compat.universal_checkpoint_info(engine.module)  # is there from now on
    flat_groups = compat.zero_flat_groups(engine.optimizer)
    whole = compat.zero_whole_tensors(engine)
    arrivals = Arrivals(
        engine,
        [Shared(group.tensors, group.process_group) for group in flat_groups]
        + [Shared([model for model, _ in pairs], process_group) for process_group, pairs in whole],
    )
    engine.adopt_arrivals = arrivals
    for number, group in enumerate(flat_groups):
        partition = Partition(
            tensors=len(group.tensors),
            stretches=[Stretch(*stretch) for stretch in group.stretches],
            arrived=functools.partial(arrivals.take, number),
            total=functools.partial(arrivals.total, number),
            number=number * torch.distributed.get_world_size() + torch.distributed.get_rank(),
        )
        optimizer.set_partition(group.flat, partition)

    if whole:

        def forget_made_up_gradients(*unused: Any) -> None:
            for index, (_, pairs) in enumerate(whole, start=len(flat_groups)):
                for (_, stepped), there in zip(pairs, arrivals.take(index), strict=True):
                    if there is False:
                        stepped.grad = None

        optimizer.register_step_pre_hook(forget_made_up_gradients)

    compat.clear_used_gradients(engine.optimizer)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def save_checkpoint(original: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
    """`DeepSpeedEngine.save_checkpoint` that writes the step counts where a universal checkpoint keeps them."""
    if is_adopt_optimizer(getattr(engine, "basic_optimizer", None)):
        info = compat.universal_checkpoint_info(engine.module)
        counts = _step_counts(engine)
        info.pop(COUNTS, None)
        if len(set(counts.values())) > 1:
            info[COUNTS] = counts
    return original(engine, *args, **kwargs)


def load_checkpoint(original: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
    """`DeepSpeedEngine.load_checkpoint` that keeps ADOPT's state and that of other optimizers apart.

    It says what to do about another world size. Of a universal checkpoint it restores what DeepSpeed does not: each
    param group's own hyperparameters, and the step counts of tensors that came late.

    Raises:
        ValueError: If the checkpoint holds the state of another optimizer, or that of ADOPT and the engine has another
            optimizer. Nothing has been loaded.
        RuntimeError: If the optimizer is on NVMe, from where DeepSpeed does not bring all of its state back.
    """
    optimizer: Any = getattr(engine, "basic_optimizer", None)
    saved = [] if optimizer is None else compat.saved_groups(original, engine, args, kwargs)
    if not is_adopt_optimizer(optimizer):
        if loading.is_adopt(saved):
            refused = guard.refusal(type(optimizer).__name__, "the state in the checkpoint")
            raise ValueError(f"{refused}. {WEIGHTS_ONLY}")
        return original(engine, *args, **kwargs)
    if engine.zero_nvme_offload_optimizer() and compat.loads_state(original, engine, args, kwargs):
        raise RuntimeError(NO_NVME_RESUME)
    from deepspeed.runtime.zero.utils import ZeRORuntimeException

    universal, here = engine.load_universal_checkpoint(), optimizer.param_groups
    if universal and saved and len(saved) != len(here):
        raise ValueError(
            f"the universal checkpoint has {len(saved)} param groups and the engine's ADOPT has {len(here)}: make the "
            "groups as they were made for the checkpoint"
        )
    try:
        groups = [loading.translated_group(there, group) for there, group in zip(saved, here, strict=False)]
    except ValueError as error:
        raise ValueError(f"{error}. {WEIGHTS_ONLY}") from error
    engine.adopt_arrivals.forget()
    before = differences.numbers(optimizer.param_groups)
    try:
        load_path, client_state = original(engine, *args, **kwargs)
    except ZeRORuntimeException as error:
        if "world size" in str(error):
            raise ZeRORuntimeException(f"{error} {OTHER_WORLD_SIZE}") from error
        raise
    if groups and universal:
        for group, there in zip(here, groups, strict=True):
            group.update({name: value for name, value in there.items() if name != "params"})
        _set_step_counts(engine, (client_state or {}).get(compat.UNIVERSAL_INFO, {}).get(COUNTS, {}))
    differences.warn(before, optimizer.param_groups)
    return load_path, client_state


def is_on_nvme(engine: Any) -> bool:
    """Return whether `engine` is a DeepSpeed engine whose optimizer is an ADOPT with its state on NVMe."""
    return is_adopt_optimizer(getattr(engine, "basic_optimizer", None)) and bool(engine.zero_nvme_offload_optimizer())


def load_weights(engine: Any, folder: str) -> None:
    """Load the weights that the Trainer has saved in `folder` into the model of a ZeRO 3 engine, one after the other.

    All processes call this. The float32 copies of the optimizer stay as they are: the weights are not trained further.

    Raises:
        FileNotFoundError: If there are no weights in the folder.
    """
    from deepspeed.runtime.zero import GatheredParameters
    from safetensors import safe_open

    files = sorted(glob.glob(os.path.join(glob.escape(folder), "model*.safetensors")))
    if not files:
        raise FileNotFoundError(
            f"{folder} has no model.safetensors: the Trainer saves it under ZeRO 3 if the DeepSpeed config has "
            '"stage3_gather_16bit_weights_on_model_save": true'
        )
    tensors = dict(engine.module.named_parameters(remove_duplicate=False)) | dict(engine.module.named_buffers())
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  it is no dictionary
                with GatheredParameters([tensors[name]], modifier_rank=0), torch.no_grad():
                    if torch.distributed.get_rank() == 0 or not hasattr(tensors[name], "ds_id"):
                        tensors[name].copy_(file.get_tensor(name))


def _step_counts(engine: Any) -> dict[str, float]:
    """The step count of each tensor that a partition holds, by name."""
    names = {p: name for name, p in engine.module.named_parameters()}
    optimizer = engine.basic_optimizer
    counts: dict[str, float] = {}
    for group in compat.zero_flat_groups(engine.optimizer):
        state = optimizer.state.get(group.flat)
        if state:
            steps = optimizer.partition_of(group.flat).steps(state)
            counts |= {names[tensor]: t for tensor, t in zip(group.tensors, steps, strict=True)}
    return counts


def _set_step_counts(engine: Any, counts: dict[str, float]) -> None:
    names = {p: name for name, p in engine.module.named_parameters()}
    for group in compat.zero_flat_groups(engine.optimizer):
        state = engine.basic_optimizer.state.get(group.flat)
        if state and counts:
            state["tensor_steps"] = [counts[names[tensor]] for tensor in group.tensors]
