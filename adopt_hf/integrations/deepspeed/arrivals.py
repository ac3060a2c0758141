"""Record which tensors of a DeepSpeed engine got a gradient, and let the processes agree on it without their devices.

The host knows which gradients arrive, because autograd calls a hook for each of them. The agreement is therefore an
all-reduce of CPU tensors over gloo. There is one in each step for all tensors that the same processes share. No step
waits for the device.
"""

import functools
import logging
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from adopt_hf.integrations.deepspeed import internals

logger = logging.getLogger("adopt_hf")


class Shared(NamedTuple):
    """Tensors that the same processes share, in the same order in all of these processes."""

    tensors: Sequence[Tensor]
    process_group: Any  # of torch.distributed, on any device


class Arrivals:
    """A record of the tensors of an engine that got a gradient since the last step, in any process that shares them.

    All processes must make it together, and call it in the same order.

    Args:
        engine: A DeepSpeed engine.
        shared: The tensors to watch. `take` takes an index into this sequence.
    """

    def __init__(self, engine: Any, shared: Sequence[Shared]):
        self.engine = weakref.ref(engine)  # the hooks live on the parameters, and must not keep the engine alive
        self.shared = shared
        self.ranks = [tuple(dist.get_process_group_ranks(one.process_group)) for one in shared]
        groups = {ranks: one.process_group for ranks, one in zip(self.ranks, shared, strict=True)}
        # The largest first: processes that have two groups in common make them in the same order.
        self.hosts = {ranks: host_group(groups[ranks]) for ranks in sorted(groups, key=lambda r: (-len(r), r))}
        self.micro_batches: dict[Tensor, tuple[int, set[int]]] = {}  # skipped_steps, and those with a gradient
        self.any_ever = False
        self.step, self.passes = engine.global_steps, 0  # the present step, and its calls of backward()
        self.agreed: dict[int, list[bool | None]] = {}  # by index, until `take` returns it
        self.agreed_step = -1
        self.handles = [
            tensor.register_post_accumulate_grad_hook(self._note)
            for one in shared
            for tensor in one.tensors
            if tensor.requires_grad
        ]
        internals.before_backward(engine, self._begin_pass)

    def _begin_pass(self, engine: Any) -> None:
        # DeepSpeed 0.19 counts micro-batches by calls of its step(). Accelerate 1.15 only calls step() at the last one.
        if engine.global_steps != self.step:
            self.step, self.passes = engine.global_steps, 0
        self.passes += 1

    def _micro_batch(self, engine: Any) -> int:
        if self.passes and engine.global_steps == self.step:
            return self.passes - 1
        # loss.backward() was called, not the engine's
        return int(engine.micro_steps % engine.gradient_accumulation_steps())

    def _note(self, tensor: Tensor) -> None:
        engine = self.engine()
        if engine is None:
            while self.handles:
                self.handles.pop().remove()
            return
        skipped, micro_batches = self.micro_batches.get(tensor, (-1, set()))
        if skipped != engine.skipped_steps:  # an overflow has discarded the earlier gradients
            micro_batches = set()
        micro_batches.add(self._micro_batch(engine))
        self.micro_batches[tensor] = (engine.skipped_steps, micro_batches)

    def take(self, index: int) -> list[bool | None]:
        """Return, for each tensor of `shared[index]`, whether any process got a gradient for it since the last step.

        The first call in a step agrees on all tensors of the same processes. If no process has ever got a gradient for
        any of these, autograd's hooks may not see gradients here. The answer is then None for each.

        Raises:
            RuntimeError: If DeepSpeed has lost or repeated a gradient, see `internals.loses_gradients`.
        """
        engine = self.engine()
        assert engine is not None  # the engine is calling
        if engine.global_steps != self.agreed_step:
            self.forget()
            self.agreed_step = engine.global_steps
        if index not in self.agreed:
            self._agree(engine, self.ranks[index])
        return self.agreed.pop(index)

    def forget(self) -> None:
        """Forget the agreement, because the engine is at another step now."""
        self.agreed.clear()
        self.agreed_step = -1

    def _agree(self, engine: Any, ranks: tuple[int, ...]) -> None:
        indices = [i for i, there in enumerate(self.ranks) if there == ranks]
        tensors = [tensor for i in indices for tensor in self.shared[i].tensors]
        # The last step of an epoch may have fewer micro-batches than the others.
        counted = engine.global_steps == self.step and self.passes
        steps = self.passes if counted else engine.gradient_accumulation_steps()
        partly = internals.loses_gradients(engine)  # where the single micro-batches matter
        seen = torch.zeros(1 + len(tensors), steps if partly else 1, dtype=torch.uint8, device="cpu")
        for row, tensor in zip(seen[1:], tensors, strict=True):
            skipped, micro_batches = self.micro_batches.pop(tensor, (-1, set()))
            if skipped == engine.skipped_steps:
                row[list(micro_batches) if partly else 0] = 1
                self.any_ever = True
        seen[0] = self.any_ever
        reduce_on_host(seen, dist.ReduceOp.MAX, self.hosts[ranks])
        any_ever, arrived = bool(seen[0, 0]), seen[1:].any(1).tolist()
        if partly and seen[1:].all(1).tolist() != arrived:
            raise RuntimeError(
                "a parameter got a gradient in some of the micro-batches of a step and not in others: DeepSpeed, with "
                f"the optimizer offloaded under ZeRO stage {engine.zero_optimization_stage()}, loses or repeats such a "
                "gradient. Use gradient_accumulation_steps=1, stage 1, or no offload of the optimizer"
            )
        if not any_ever and counted:
            _warn_of_hidden_gradients()
        known: list[bool | None] = [bool(there) if any_ever else None for there in arrived]
        for i in indices:
            self.agreed[i], known = known[: len(self.shared[i].tensors)], known[len(self.shared[i].tensors) :]

    def total(self, index: int, counts: Tensor) -> None:
        """Sum `counts`, of int64 or float64 and on the CPU, in place over the processes that share `shared[index]`."""
        reduce_on_host(counts, dist.ReduceOp.SUM, self.hosts[self.ranks[index]])


@functools.cache  # once a process
def _warn_of_hidden_gradients() -> None:
    logger.warning(
        "autograd's hooks have not seen a gradient of any parameter of the DeepSpeed engine, so ADOPT reads the values "
        "of the gradients in each step and waits for the device. A compiler that reduces gradients itself, such as "
        "DeepCompile, may hide them: train without it"
    )


# -- Process groups for CPU tensors ------------------------------------------------------------------------------------

_made: dict[tuple[int, ...], Any] = {}  # by ranks, in the process group that follows
_made_in: Any = None


def host_group(process_group: Any) -> Any:
    """Return a process group of the same ranks that reduces CPU tensors: `process_group` if it does, or one of gloo.

    All processes of the group must call this. Those that make several groups must make them in the same order. A gloo
    group is made once for the same ranks, because each rank has a connection to every other rank.
    """
    global _made_in
    if "cpu:gloo" in dist.get_backend_config(process_group):
        return process_group
    if _made_in is not dist.group.WORLD:  # torch.distributed has been initialised again
        _made.clear()
        _made_in = dist.group.WORLD
    ranks = tuple(dist.get_process_group_ranks(process_group))
    if ranks not in _made:
        # An engine may be made by some of the processes, so only the members of the group can be expected to call this.
        _made[ranks] = dist.new_group(list(ranks), backend="gloo", use_local_synchronization=True)
    return _made[ranks]


def reduce_on_host(values: Tensor, operation: Any, group: Any) -> None:
    """Reduce `values`, a tensor on the CPU, in place over the processes of `group`, which `host_group` returned."""
    if dist.get_world_size(group) > 1:
        dist.all_reduce(values, op=operation, group=group)
