"""What ADOPT has to know inside a DeepSpeed engine: which tensors have a gradient, and what their step counts are.

DeepSpeed shows an optimizer flat partitions. Where a tensor has no gradient it fills in zeros, or leaves an old one in
its place. Hooks on the model's own parameters bring back what is lost, so that every stage trains as one process.
"""

import functools
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adopt_hf import states
from adopt_hf.integrations import compat
from adopt_hf.optimizer import ADOPT
from adopt_hf.partition import Partition, Stretch

COUNTS = "adopt_tensor_steps"  # in the universal_checkpoint_info of a checkpoint: name -> step count

NO_NVME_RESUME = (
    "DeepSpeed does not load the optimizer's state from a checkpoint when it is offloaded to NVMe: step counts, and "
    "what was too small to be swapped, would begin anew. Train with the optimizer on the CPU "
    "(offload_optimizer.device=cpu) where a run has to be resumed, or go on from the weights alone "
    "(load_checkpoint(..., load_optimizer_states=False))"
)

OTHER_WORLD_SIZE = (
    "To go on with another number of processes, make a universal checkpoint of it: "
    "`python -m deepspeed.checkpoint.ds_to_universal --input_folder CHECKPOINT/global_stepN --output_folder "
    'CHECKPOINT/global_stepN_universal`, and set "checkpoint": {"load_universal": true} in the DeepSpeed config.'
)


class Arrivals:
    """Which of a model's tensors have got a gradient since they were last asked for, in any of the processes."""

    def __init__(self, engine: Any):
        self.engine = weakref.ref(engine)  # the hooks live on the parameters, and must not keep the engine alive
        self.micro_batches: dict[Tensor, tuple[int, set[int]]] = {}  # the engine's skipped_steps, and those with one
        self.ever: set[Tensor] = set()
        self.handles: list[Any] = []
        self.step, self.passes = engine.global_steps, 0  # the step that is being gathered, and its calls of backward()
        compat.before_backward(engine, self._begin_pass)

    def _begin_pass(self, engine: Any) -> None:
        # DeepSpeed counts micro-batches by calls of its step(); Accelerate calls that at the last one alone.
        if engine.global_steps != self.step:
            self.step, self.passes = engine.global_steps, 0
        self.passes += 1

    def _micro_batch(self, engine: Any) -> int:
        if self.passes and engine.global_steps == self.step:
            return self.passes - 1
        return int(engine.micro_steps % engine.gradient_accumulation_steps())  # loss.backward(), not the engine's

    def watch(self, tensors: Sequence[Tensor]) -> None:
        self.handles += [t.register_post_accumulate_grad_hook(self._note) for t in tensors if t.requires_grad]

    def _note(self, tensor: Tensor) -> None:
        engine = self.engine()
        if engine is None:
            while self.handles:
                self.handles.pop().remove()
            return
        skipped, micro_batches = self.micro_batches.get(tensor, (-1, set()))
        if skipped != engine.skipped_steps:  # an overflow has made gradients from before it void
            micro_batches = set()
        micro_batches.add(self._micro_batch(engine))
        self.micro_batches[tensor] = (engine.skipped_steps, micro_batches)
        self.ever.add(tensor)

    def take(self, tensors: Sequence[Tensor], process_group: Any) -> list[bool | None]:
        """For each tensor, whether a gradient has come since the last call; None where none has ever come.

        The same in all processes of the group: in one that has seen none, DeepSpeed may have filled in zeros.

        Raises:
            RuntimeError: DeepSpeed has lost or repeated a gradient, see `compat.loses_gradients`.
        """
        engine = self.engine()
        assert engine is not None  # it is calling
        # The last step of an epoch may have fewer micro-batches than the others.
        counted = engine.global_steps == self.step and self.passes
        steps = self.passes if counted else engine.gradient_accumulation_steps()
        seen = torch.zeros(len(tensors), 1 + steps, dtype=torch.uint8)
        for row, tensor in zip(seen, tensors, strict=True):
            row[0] = tensor in self.ever
            skipped, micro_batches = self.micro_batches.pop(tensor, (-1, set()))
            if skipped == engine.skipped_steps:
                row[[1 + index for index in micro_batches]] = 1
        seen = _reduced(seen, torch.distributed.ReduceOp.MAX, process_group)
        ever, arrived, always = seen[:, 0].tolist(), seen[:, 1:].bool().any(1), seen[:, 1:].bool().all(1)
        if compat.loses_gradients(engine) and not torch.equal(arrived, always):
            raise RuntimeError(
                "a parameter got a gradient in some of the micro-batches of a step and not in others: DeepSpeed, with "
                f"the optimizer offloaded under ZeRO stage {engine.zero_optimization_stage()}, loses or repeats such a "
                "gradient. Use gradient_accumulation_steps=1, stage 1, or no offload of the optimizer"
            )
        return [there if known else None for known, there in zip(ever, arrived.tolist(), strict=True)]


def follow(engine: Any) -> None:
    """Let the ADOPT of a DeepSpeed engine see which tensors have a gradient, and count their steps one by one."""
    optimizer = engine.basic_optimizer
    compat.universal_checkpoint_info(engine.module)  # is there from now on
    arrivals = Arrivals(engine)
    for number, group in enumerate(compat.zero_flat_groups(engine.optimizer)):
        arrivals.watch(group.tensors)
        partition = Partition(
            tensors=len(group.tensors),
            stretches=[Stretch(*stretch) for stretch in group.stretches],
            arrived=functools.partial(arrivals.take, group.tensors, group.process_group),
            total=functools.partial(_total, group.process_group),
            number=number * torch.distributed.get_world_size() + torch.distributed.get_rank(group.process_group),
        )
        optimizer.set_partition(group.flat, partition)

    whole = compat.zero_whole_tensors(engine.optimizer)
    if whole:
        group_of_all = compat.data_parallel_group(engine)
        arrivals.watch([tensor for tensor, _ in whole])

        def forget_made_up_gradients(*unused: Any) -> None:
            arrived = arrivals.take([tensor for tensor, _ in whole], group_of_all)
            for (_, stepped), there in zip(whole, arrived, strict=True):
                if there is False:
                    stepped.grad = None

        optimizer.register_step_pre_hook(forget_made_up_gradients)

    calls = compat.steps_until_gradients_are_used(engine.optimizer)
    if calls:
        zero, done = weakref.ref(engine.optimizer), 0

        def forget_old_gradients(*unused: Any) -> None:
            nonlocal done
            done = (done + 1) % calls
            if done == 0:
                compat.zero_old_gradients(zero())

        optimizer.register_step_post_hook(forget_old_gradients)


def _total(process_group: Any, counts: Tensor) -> None:
    counts.copy_(_reduced(counts, torch.distributed.ReduceOp.SUM, process_group))


def _reduced(values: Tensor, operation: Any, process_group: Any) -> Tensor:
    """`values`, on whatever device, reduced over the processes on the device that can; on the CPU."""
    from deepspeed.accelerator import get_accelerator

    reduced = values.to(get_accelerator().current_device_name(), copy=True)
    torch.distributed.all_reduce(reduced, op=operation, group=process_group)
    return reduced.cpu()


# -- checkpoints -------------------------------------------------------------------------------------------------------


def save_checkpoint(original: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
    """`DeepSpeedEngine.save_checkpoint` that writes the step counts where a universal checkpoint keeps them."""
    if isinstance(getattr(engine, "basic_optimizer", None), ADOPT):
        info = compat.universal_checkpoint_info(engine.module)
        counts = _step_counts(engine)
        info.pop(COUNTS, None)
        if len(set(counts.values())) > 1:
            info[COUNTS] = counts
    return original(engine, *args, **kwargs)


def load_checkpoint(original: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
    """`DeepSpeedEngine.load_checkpoint` that refuses Adam's state, and says what to do about another world size.

    Of a universal checkpoint it restores what DeepSpeed does not: each param group's own hyperparameters, and the step
    counts of tensors that came late.

    Raises:
        ValueError: a universal checkpoint holds the state of another optimizer; nothing has been loaded then.
        RuntimeError: the optimizer is on NVMe, from where DeepSpeed does not bring all of its state back.
    """
    optimizer = getattr(engine, "basic_optimizer", None)
    if not isinstance(optimizer, ADOPT):
        return original(engine, *args, **kwargs)
    if engine.zero_nvme_offload_optimizer() and compat.loads_state(original, engine, args, kwargs):
        raise RuntimeError(NO_NVME_RESUME)
    from deepspeed.runtime.zero.utils import ZeRORuntimeException

    saved = compat.universal_groups(original, engine, args, kwargs)
    groups = [
        states.translated_group(there, here) for there, here in zip(saved, optimizer.param_groups, strict=bool(saved))
    ]
    try:
        load_path, client_state = original(engine, *args, **kwargs)
    except ZeRORuntimeException as error:
        if "world size" in str(error):
            raise ZeRORuntimeException(f"{error} {OTHER_WORLD_SIZE}") from error
        raise
    if groups:
        for here, there in zip(optimizer.param_groups, groups, strict=True):
            here.update({name: value for name, value in there.items() if name != "params"})
        _set_step_counts(engine, (client_state or {}).get(compat.UNIVERSAL_INFO, {}).get(COUNTS, {}))
    return load_path, client_state


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
