"""Local real views of parameters: shards of DTensors, complex tensors, tensor subclasses."""

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_dtensor(t: Tensor) -> "TypeGuard[DTensor]":
    """Return whether `t` is a DTensor.

    No DTensor exists before torch.distributed.tensor has been imported. That import takes half as long as torch's own,
    and a program of one process does not need it.
    """
    cls = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return cls is not None and isinstance(t, cls)


def sharding_of(p: Tensor) -> Any:
    """Return the mesh and the placements of a DTensor, or None for any other tensor."""
    return (p.device_mesh, p.placements) if is_dtensor(p) else None


def is_cut_without_mesh(p: Tensor) -> bool:
    """Return whether `p` is one process's part of a tensor, and no mesh says which processes have the others.

    DeepSpeed's AutoTP and Megatron mark such parameters.
    """
    return getattr(p, "tensor_model_parallel", False) is True


def shard(sharding: Any) -> tuple[int, ...]:
    """Return the coordinates of this process's shard of a DTensor. Replicas of a shard have equal coordinates."""
    if sharding is None:
        return ()
    mesh, placements = sharding
    where = mesh.get_coordinate()
    return tuple(where[dim] for dim, placement in enumerate(placements) if not placement.is_replicate())


def locally(p: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a parameter, its gradient and its moments as local real tensors.

    Raises:
        RuntimeError: If some of them are DTensors and others are not.
    """
    sharded = [is_dtensor(t) for t in (p, grad, exp_avg, exp_avg_sq)]
    if any(sharded) and not all(sharded):
        kinds = ", ".join(type(t).__name__ for t in (p, grad, exp_avg, exp_avg_sq))
        raise RuntimeError(
            f"a parameter of shape {tuple(p.shape)}, its gradient, exp_avg and exp_avg_sq are {kinds}: either all "
            "of them must be DTensors, or none"
        )
    if needs_redistribution(p, grad):
        assert is_dtensor(p)
        assert is_dtensor(grad)
        grad = grad.redistribute(placements=p.placements)
    return local_real(p), local_real(grad.resolve_conj()), local_real(exp_avg), local_real(exp_avg_sq)


def needs_redistribution(p: Tensor, grad: Tensor) -> bool:
    """Return whether a gradient has other placements than its parameter. Redistributing it is a collective."""
    return is_dtensor(p) and is_dtensor(grad) and grad.placements != p.placements


def local(t: Tensor) -> Tensor:
    """Return the local shard of a DTensor, and any other tensor unchanged."""
    return t.to_local() if is_dtensor(t) else t


def local_real(t: Tensor) -> Tensor:
    """Return the local shard of a tensor, as a real view if it is complex."""
    t = local(t)
    return torch.view_as_real(t) if t.is_complex() else t


def sum_over_shards(sharding: Any, counts: Tensor) -> None:
    """Sum `counts` in place over the processes that share a tensor with this `sharding`."""
    mesh, placements = sharding
    there = counts.to(mesh.device_type)
    for dim, placement in enumerate(placements):
        if not placement.is_replicate():
            torch.distributed.all_reduce(there, group=mesh.get_group(dim))
    if there is not counts:
        counts.copy_(there)
