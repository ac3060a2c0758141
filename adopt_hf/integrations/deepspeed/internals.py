"""The inside of DeepSpeed: all that is not its public interface, and that ADOPT has to read or change."""

import importlib.metadata
import sys
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adopt_hf.integrations import patching


def states_of_fused_adam(engine: Any, include: Any) -> list[str]:
    """Return the states of `include` that stage 3 moves for FusedAdam only. `include` is that of `offload_states`."""
    from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum as Kind

    if engine.zero_use_cpu_optimizer():  # DeepSpeed leaves out what is on the CPU
        return []
    return [kind.value for kind in (Kind.optim_states, Kind.hp_params) if include is None or kind in include]


# -- ZERO_SUPPORTED_OPTIMIZERS: the list of classes that ZeRO calls tested ---------------------------------------------
# Issue: other classes need "zero_allow_untested_optimizer" in the config, and DeepSpeed 0.19 warns of them.
# Why:   the tests here run ADOPT in every stage.
# Remove when: DeepSpeed has ADOPT in the list, or none.


def support_in_zero(optimizer_class: type) -> None:
    """Add the class to ZeRO's list of tested optimizers. ZeRO looks for the exact class, not for its base classes."""
    supported = _supported()
    if optimizer_class not in supported:
        supported.append(optimizer_class)


def support_in_zero_no_more(is_ours: Callable[[object], bool]) -> None:
    """Undo `support_in_zero` for the classes that are ours, if the list exists."""
    if has_list_of_supported():
        _supported()[:] = [c for c in _supported() if not is_ours(c)]


def has_list_of_supported() -> bool:
    """Return whether ZeRO has this list. Imports nothing, because DeepSpeed imports the module."""
    return isinstance(_supported(), list)


def _supported() -> Any:
    return getattr(sys.modules.get("deepspeed.runtime.zero.utils"), "ZERO_SUPPORTED_OPTIMIZERS", None)


# -- Gradients of tensors that have none -------------------------------------------------------------------------------
# Issue: stage 3 of DeepSpeed 0.19 keeps a tensor's last gradient in its buffer. If the tensor has none in the next
#        step, stage 3 adds to the old one or counts it in the norm. An inf there makes it skip the next steps, too.
#        With the optimizer offloaded, stages 2 and 3 lose or repeat the gradient of a tensor that has one only in some
#        of the micro-batches of a step.
# Why:   the first can be corrected from outside, the second cannot.
# Remove when: DeepSpeed clears its buffers (docs/upstream/deepspeed-stage3-gradients).


def loses_gradients(engine: Any) -> bool:
    """Return whether DeepSpeed loses gradients that come in only some of the micro-batches of a step."""
    offload = engine.zero_offload_optimizer()
    offloaded = engine.zero_use_cpu_optimizer() or (offload is not None and offload.device != "none")
    return offloaded and engine.zero_optimization_stage() >= 2


def before_backward(engine: Any, call: Callable[[Any], None]) -> None:
    """Call `call(engine)` before each of the engine's backward passes."""
    original, of = type(engine).backward, weakref.ref(engine)  # a strong reference would keep the engine alive

    def backward(*args: Any, **kwargs: Any) -> Any:
        call(of())
        return original(of(), *args, **kwargs)

    engine.backward = backward


def clear_used_gradients(optimizer: Any) -> None:
    """Clear the gradients of a ZeRO 3 optimizer after each of its steps, also after one that an overflow skips.

    A DeepSpeed with the change of docs/upstream/deepspeed-stage3-gradients does it by itself.
    """
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

    if not isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3) or hasattr(optimizer, "clear_used_gradients"):
        return
    original, of = type(optimizer).step, weakref.ref(optimizer)  # a strong reference would keep the optimizer alive

    def step(*args: Any, **kwargs: Any) -> Any:
        result = original(of(), *args, **kwargs)
        buffer = getattr(of(), "grad_partitions_flat_buffer", None)
        if buffer is not None:
            buffer.zero_()
        return result

    optimizer.step = step


# -- Param groups of experts -------------------------------------------------------------------------------------------
# Issue: DeepSpeed's experts need param groups of their own. DeepSpeed 0.19 makes these groups for an optimizer that the
#        config names, but not for one that a function makes. The groups that it divides must have names.
# Why:   a block of ours is a function to DeepSpeed.
# Remove when: DeepSpeed can be told of an optimizer class.


def expert_groups(params: Any) -> list[Any]:
    """Return `params`, parameters or param groups, with DeepSpeed's experts in groups of their own."""
    from deepspeed.moe.utils import configure_moe_param_groups, is_moe_param

    given: list[Any] = list(params)
    groups = [p for p in given if isinstance(p, dict)]
    tensors = [p for group in groups for p in group["params"]] if groups else given
    if not any(map(is_moe_param, tensors)):
        return given
    if groups:
        given = [{"name": f"group{i}"} | group for i, group in enumerate(groups)]
    divided: list[Any] = configure_moe_param_groups(given)
    return divided


# -- ZeRO's optimizers: which tensors a flat partition is made of ------------------------------------------------------
# Issue: ADOPT counts steps tensor by tensor, and ZeRO gives it one flat tensor for many (DeepSpeed 0.17 to 0.19).
# Why:   only the lists of groups of ZeRO's optimizers say which tensors these are.
# Remove when: DeepSpeed tells an optimizer what its partitions hold.


class FlatGroup(NamedTuple):
    """A flat parameter of this process, and the tensors in it."""

    flat: Tensor
    tensors: list[Tensor]  # of the model, also those of other processes, in the same order in all
    stretches: list[tuple[int, int, int]]  # of this process: (index of the tensor, start, numel)
    process_group: Any  # of torch.distributed: the processes that share the tensors


def zero_flat_groups(optimizer: Any) -> list[FlatGroup]:
    """Return the flat parameters of the optimizer of a DeepSpeed engine. An optimizer that is not ZeRO's has none.

    Raises:
        ImportError: If this DeepSpeed has changed ZeRO's optimizers.
    """
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    try:
        if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
            return [
                FlatGroup(flat, list(tensors), _consecutive(tensors), _group_of_all(tensors, optimizer))
                for flat, tensors in zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_groups, strict=True)
            ]
        if isinstance(optimizer, DeepSpeedZeroOptimizer):
            return [
                FlatGroup(flat, list(tensors), _cut(flat, tensors, offsets, process_group), process_group)
                for flat, tensors, offsets, process_group in zip(
                    optimizer.single_partition_of_fp32_groups,
                    optimizer.round_robin_bit16_groups,  # in the order of the flat tensor, with round robin or without
                    optimizer.round_robin_bit16_offsets,
                    optimizer.real_dp_process_group,
                    strict=True,
                )
            ]
        if isinstance(optimizer, BF16_Optimizer):
            return [
                FlatGroup(flat, list(tensors), _linked(tensors), process_group)
                for flat, tensors, process_group in zip(
                    optimizer.fp32_groups_flat_partition,
                    optimizer.bf16_groups,
                    optimizer.real_dp_process_group,
                    strict=True,
                )
            ]
        return []
    except AttributeError as error:
        raise _changed(optimizer, error) from error


def _group_of_all(tensors: Any, optimizer: Any) -> Any:
    """Return the processes among which stage 3 divides each of the tensors. The experts of AutoEP have their own."""
    groups = [getattr(tensor, "ds_process_group", optimizer.dp_process_group) for tensor in tensors]
    by_ranks = {tuple(torch.distributed.get_process_group_ranks(group)): group for group in groups}
    if len(by_ranks) > 1:
        raise RuntimeError(
            "one param group has tensors that are divided among different processes "
            f"({' and '.join(map(str, sorted(by_ranks)))}), and ADOPT counts the steps of a group's tensors together: "
            "put the experts into param groups of their own"
        )
    return groups[0]


def zero_whole_tensors(engine: Any) -> list[tuple[Any, list[tuple[Tensor, Tensor]]]]:
    """Return the tensors that stage 0 leaves whole, by the processes that average their gradients.

    Returns:
        For each process group, the pairs of a tensor of the model and the tensor that is stepped for it. The second is
        an fp32 copy of the first or the first itself. Other stages have no groups.

    Raises:
        ImportError: If this DeepSpeed has changed the optimizer of stage 0, or its groups.
    """
    from deepspeed.moe.utils import is_moe_param
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

    optimizer = engine.optimizer
    try:
        if isinstance(optimizer, FP16_UnfusedOptimizer):
            both = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
            pairs = [pair for group in both for pair in zip(*group, strict=True)]
        elif isinstance(optimizer, torch.optim.Optimizer):
            pairs = [(p, p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        else:
            pairs = []
        found: dict[Any, list[tuple[Tensor, Tensor]]] = {}
        for model, stepped in pairs:
            of_experts = is_moe_param(model)
            group = (
                engine.expert_data_parallel_group[model.group_name] if of_experts else engine.seq_data_parallel_group
            )
            found.setdefault(group, []).append((model, stepped))
    except AttributeError as error:
        raise _changed(optimizer, error) from error
    return list(found.items())


def _changed(optimizer: Any, error: AttributeError) -> ImportError:
    installed, kind = importlib.metadata.version("deepspeed"), type(optimizer).__name__
    return ImportError(patching.says_changed("deepspeed", installed, f"{kind} ({error})"))


def _consecutive(tensors: Any) -> list[tuple[int, int, int]]:
    """Return the stretches of stage 3. Each process has its part of every tensor, one after the other."""
    stretches, start = [], 0
    for index, tensor in enumerate(tensors):
        stretches.append((index, start, tensor.partition_numel()))
        start += tensor.partition_numel()
    return stretches


def _cut(flat: Tensor, tensors: Any, offsets: Any, process_group: Any) -> list[tuple[int, int, int]]:
    """Return the stretches of stages 1 and 2. The flat group is cut into one equal part for each process."""
    size = flat.numel()
    start = torch.distributed.get_rank(process_group) * size
    stretches = []
    for index, (tensor, offset) in enumerate(zip(tensors, offsets, strict=True)):
        low, high = max(offset, start), min(offset + tensor.numel(), start + size)
        if low < high:
            stretches.append((index, low - start, high - low))
    return sorted(stretches, key=lambda stretch: stretch[1])


def _linked(tensors: Any) -> list[tuple[int, int, int]]:
    """Return the stretches of stage 1 in bf16 with float32 gradients, cut as in `_cut`. Each tensor has its own."""
    mappings = [(index, tensor._hp_mapping) for index, tensor in enumerate(tensors) if tensor._hp_mapping is not None]
    addresses = [(index, mapping.get_hp_fragment_address()) for index, mapping in mappings]
    return sorted(((i, address.start, address.numel) for i, address in addresses), key=lambda stretch: stretch[1])


# -- universal_checkpoint_info: what DeepSpeed's converter wants to find in a checkpoint of stages 1 and 2 -------------
# Issue: `ds_to_universal` of DeepSpeed 0.19 refuses a checkpoint without it, unless given --inject_missing_state.
# Why:   the engine saves the attribute of this name that the model has. DeepSpeed expects a client to set it.
# Remove when: the engine writes it by itself.

UNIVERSAL_INFO = "universal_checkpoint_info"


def universal_checkpoint_info(model: Any) -> dict[str, Any]:
    """Return the dictionary of that name, and make it if the model has none.

    In a new one, no tensor has a rule of its own for the conversion.
    """
    from deepspeed.checkpoint import constants

    info: dict[str, Any] | None = getattr(model, constants.UNIVERSAL_CHECKPOINT_INFO, None)
    if info is None:
        info = {constants.UNIVERSAL_CHECKPOINT_VERSION_KEY: constants.UNIVERSAL_CHECKPOINT_VERSION_VALUE}
        setattr(model, constants.UNIVERSAL_CHECKPOINT_INFO, info)
    return info


# -- Checkpoints and configs -------------------------------------------------------------------------------------------


def zero_error() -> type[Exception]:
    """Return the class of the error about a checkpoint of another world size, among others."""
    from deepspeed.runtime.zero.utils import ZeRORuntimeException

    error: type[Exception] = ZeRORuntimeException
    return error


def refuse_duplicate_keys() -> Callable[..., Any]:
    """Return the hook by which DeepSpeed refuses a config file that has a key twice."""
    from deepspeed.runtime.config_utils import dict_raise_error_on_duplicate_keys

    hook: Callable[..., Any] = dict_raise_error_on_duplicate_keys
    return hook
