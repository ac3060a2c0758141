"""What one step does: the state of new parameters, like tensors in buckets, a backend for each, and the step counts."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from itertools import compress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from adopt_hf import algorithm, backends, moments, rounding
from adopt_hf.backends.bucket import Bucket, CapturableBucket, RoundedBucket
from adopt_hf.backends.dense import is_plain
from adopt_hf.partition import Partition, counted
from adopt_hf.storage import Storage, storage_of

Columns = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]  # theta, g, m, v as a bucket has them


class Kind(NamedTuple):
    """What the parameters of a bucket have in common, beside the step count."""

    group: int
    device: torch.device
    dtype: torch.dtype
    grad_dtype: torch.dtype
    storage: Storage
    plain: bool = True  # not of a subclass that handles its operations
    sharding: Any = None  # the mesh and the placements of DTensors


class Members(NamedTuple):
    """The parameters of one kind that have a gradient, one entry a parameter in each list."""

    params: list[Tensor]
    states: list[dict[str, Any]]
    columns: Columns  # their real local tensors
    scales: list[Tensor]  # of moments in 8 bits, else empty
    numbers: list[int]  # theirs among all parameters

    def only(self, indices: Sequence[int]) -> "Members":
        p, g, m, v = ([column[i] for i in indices] for column in self.columns)
        params, states, numbers = [self.params[i] for i in indices], [self.states[i] for i in indices], self.numbers
        scales = [self.scales[i] for i in indices] if self.scales else []
        return Members(params, states, (p, g, m, v), scales, [numbers[i] for i in indices])


class Updated(NamedTuple):
    """Tensors that are updated with the same numbers."""

    t: float
    columns: Columns
    scales: list[Tensor]
    names: list[tuple[int, ...]]  # what their random bits hang on, beside the seed, the shard and t


class Plan(NamedTuple):
    """All that one step does: the buckets to update, by backend, and what becomes of the step counts afterwards."""

    buckets: dict[backends.Backend, list[Bucket]]
    rounded: dict[backends.Backend, list[RoundedBucket]]
    capturable: dict[backends.Backend, list[CapturableBucket]]  # count their steps themselves
    counted: list[tuple[list[dict[str, Any]], Tensor]]  # states of parameters, and their new counts in one vector
    counted_flat: list[tuple[dict[str, Any], dict[str, Any]]]  # state of a flat parameter, and its new entries


def make_plan(
    groups: Sequence[dict[str, Any]],
    states: MutableMapping[Tensor, dict[str, Any]],
    partitions: Mapping[Tensor, Partition],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    compiling: bool,
    first: int = 0,
) -> Plan:
    """The plan for all parameters that have a gradient.

    Args:
        groups: the param groups.
        states: of the parameters; those at their first gradient get theirs.
        partitions: of the flat ones among the parameters.
        grad_scale: what a GradScaler's gradients are too large by, one element, or None: 1.
        found_inf: not zero where a gradient is not finite: then nothing is to be updated; one element, or None: 0.
        compiling: under `torch.compile`, where the numbers that change from step to step are tensors.
        first: the number of the first parameter among all of the optimizer.

    Raises:
        RuntimeError: a gradient is sparse, or a backend asked for by name cannot run; no parameter has been changed.
    """
    factor, overflow = 1.0, False
    if not all(group["capturable"] for group in groups):  # the host needs them
        factor = 1.0 if grad_scale is None else grad_scale.item()
        overflow = found_inf is not None and found_inf.item() != 0

    _check(groups, partitions)
    plan = Plan(defaultdict(list), defaultdict(list), defaultdict(list), [], [])
    for kind, members in _by_kind(groups, states, partitions, first).items():
        group, rounded = groups[kind.group], not kind.storage.is_plain
        name, capturable = "reference" if compiling and not rounded else group["backend"], group["capturable"]
        backend = backends.choose(
            name, kind.device, kind.dtype, capturable=capturable, plain=kind.plain, rounded=rounded
        )
        if capturable:
            plan.capturable[backend].append(_capturable(members, group, kind, grad_scale, found_inf))
        elif not overflow:
            for t, columns, scales, names in _to_update(members, kind, partitions, plan):
                scalars = algorithm.step_scalars(group, t, factor)
                if rounded:
                    keys = [rounding.key((group["seed"], *name, *_shard(kind.sharding), int(t))) for name in names]
                    plan.rounded[backend].append(RoundedBucket(*columns, scales, keys, kind.storage, scalars))
                else:
                    plan.buckets[backend].append(Bucket(*columns, scalars.for_compiler() if compiling else scalars))
    return plan


def count_steps(plan: Plan) -> None:
    """Write the new step counts into the states."""
    for states, steps in plan.counted:
        # Replaced, not changed in place: other frameworks hand out one tensor to several parameters.
        for state, step in zip(states, steps.unbind(), strict=True):
            state["step"] = step
            state.pop("tensor_steps", None)  # of a parameter that was flat once
    for state, new in plan.counted_flat:
        state.update(new)
        if state["tensor_steps"] is None:
            del state["tensor_steps"]


def _check(groups: Sequence[dict[str, Any]], partitions: Mapping[Tensor, Partition]) -> None:
    for group in groups:
        for p in group["params"]:
            grad = p.grad
            if grad is not None and grad.layout != torch.strided:
                raise RuntimeError(
                    f"ADOPT does not support sparse gradients (got {grad.layout} for a parameter of shape "
                    f"{tuple(p.shape)}): use sparse=False in the embedding, or torch.optim.SparseAdam"
                )
        if group["capturable"] and any(p in partitions for p in group["params"]):
            raise RuntimeError(
                "capturable=True cannot run on the flat parameters of ZeRO, whose steps are counted tensor by tensor "
                "on the host: leave it out"
            )


def _by_kind(
    groups: Sequence[dict[str, Any]],
    states: MutableMapping[Tensor, dict[str, Any]],
    partitions: Mapping[Tensor, Partition],
    first: int,
) -> dict[Kind, Members]:
    dtypes = _StateDtypes()
    by_key: dict[tuple[Any, ...], Members] = defaultdict(lambda: Members([], [], ([], [], [], []), [], []))
    before = first  # parameters that lie behind
    for index, group in enumerate(groups):
        plain_storage = Storage(32, group["block_size"], False)
        all_plain = group["state_bits"] == 32 and not group["bf16_stochastic_round"]
        for position, p in enumerate(group["params"]):
            grad = p.grad
            if grad is None:
                continue
            state = states[p]
            partition = partitions.get(p) if partitions else None
            storage = plain_storage if all_plain else storage_of(p, group, position, partition is not None)
            bits, number = storage.bits, before + position
            if not state:
                moments.add_zeros(p, state, storage, partition)
            if "scales" in state if bits != 8 else "scales" not in state:
                _bring_into_form(p, state, storage, partition, group, number)
            m_name, v_name = moments.FLOATS if bits != 8 else moments.CODES[:2]
            theta, g, m, v = p, grad, state[m_name], state[v_name]
            if bits != 8 and (m.dtype != v.dtype or m.dtype != (dtypes[p.dtype] if bits == 32 else torch.bfloat16)):
                _bring_into_form(p, state, storage, partition, group, number)
                m, v = state[m_name], state[v_name]
            if type(p) in (Parameter, Tensor) and type(g) is type(m) is type(v) is Tensor and not p.is_complex():
                key: tuple[Any, ...] = (index, p.device, p.dtype, g.dtype, storage)
            else:
                sharding = (p.device_mesh, p.placements) if isinstance(p, DTensor) else None
                theta, g, m, v = _locally(p, g, m, v)
                key = (index, p.device, p.dtype, g.dtype, storage, all(map(is_plain, (theta, g, m, v))), sharding)
            params, of_params, (thetas, gs, ms, vs), scales, numbers = by_key[key]
            params.append(p)
            of_params.append(state)
            thetas.append(theta)
            gs.append(g)
            ms.append(m)
            vs.append(v)
            numbers.append(number)
            if bits == 8:
                moments.check_scales(p, state, partition, group["block_size"])
                scales.append(_local_real(state["scales"]))
        before += len(group["params"])
    return {Kind(*key): members for key, members in by_key.items()}


class _StateDtypes(dict[torch.dtype, torch.dtype]):
    """`algorithm.state_dtype`, looked up once."""

    def __missing__(self, dtype: torch.dtype) -> torch.dtype:
        self[dtype] = algorithm.state_dtype(dtype)
        return self[dtype]


def _bring_into_form(
    p: Tensor,
    state: dict[str, Any],
    storage: Storage,
    partition: Partition | None,
    group: Mapping[str, Any],
    number: int,
) -> None:
    key = rounding.key((group["seed"], number, *shard_of(p), int(state["step"])))
    moments.bring_into_form(p, state, storage, partition, key)


def _to_update(members: Members, kind: Kind, partitions: Mapping[Tensor, Partition], plan: Plan) -> Iterator[Updated]:
    """What of the members, all of one kind, this step updates; notes the counts in `plan`.

    A tensor at t == 0 whose gradient is all zero is left out (8).
    """
    by_step: dict[float, list[int]] = defaultdict(list)
    for i, (p, state) in enumerate(zip(members.params, members.states, strict=True)):
        if not partitions or p not in partitions:
            by_step[float(state["step"])].append(i)
    for t, indices in by_step.items():
        if t == 0:
            indices = list(compress(indices, _observed([members.columns[1][i] for i in indices], kind.sharding)))
        if indices:
            together = members if len(indices) == len(members.params) else members.only(indices)
            plan.counted.append(
                (together.states, torch.full((len(indices),), t + 1, dtype=torch.float32, device="cpu"))
            )
            yield Updated(t, together.columns, together.scales, [(number,) for number in together.numbers])
    if partitions:
        yield from _of_flat(members, kind, partitions, plan)


def _of_flat(members: Members, kind: Kind, partitions: Mapping[Tensor, Partition], plan: Plan) -> Iterator[Updated]:
    """The same of those that are flat, by step count."""
    for i, (param, state) in enumerate(zip(members.params, members.states, strict=True)):
        if param not in partitions:
            continue
        partition, four = partitions[param], [column[i] for column in members.columns]
        counts = partition.steps(state)
        active = partition.active(four[1], counts)
        plan.counted_flat.append((state, counted(active, counts)))
        if kind.storage.is_plain:
            for t, spans in partition.spans(active, counts).items():
                theta, g, m, v = ([span.of(flat) for span in spans] for flat in four)
                yield Updated(t, (theta, g, m, v), [], [])
            continue
        by_step: dict[float, list[moments.Piece]] = defaultdict(list)
        for piece in moments.pieces(partition, kind.storage.block_size):
            if active[piece.tensor]:
                by_step[counts[piece.tensor]].append(piece)
        for t, updated in by_step.items():
            theta, g, m, v = ([piece.of(flat) for piece in updated] for flat in four)
            scales = members.scales and [
                piece.scales_of(members.scales[i], kind.storage.block_size) for piece in updated
            ]
            yield Updated(t, (theta, g, m, v), scales, [(partition.number, piece.tensor) for piece in updated])


def shard_of(p: Tensor) -> tuple[int, ...]:
    """As `_shard`, of a parameter."""
    return _shard((p.device_mesh, p.placements) if isinstance(p, DTensor) else None)


def _shard(sharding: Any) -> tuple[int, ...]:
    """Which shard of a DTensor this process has; replicas of it are alike."""
    if sharding is None:
        return ()
    mesh, placements = sharding
    where = mesh.get_coordinate()
    return tuple(where[dim] for dim, placement in enumerate(placements) if not placement.is_replicate())


def _capturable(
    members: Members, group: dict[str, Any], kind: Kind, grad_scale: Tensor | None, found_inf: Tensor | None
) -> CapturableBucket:
    for state in members.states:
        if state["step"].device != kind.device or state["step"].dtype != torch.float32:
            state["step"] = state["step"].to(kind.device, torch.float32)
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.device != kind.device:
        group = group | {"lr": lr.to(kind.device, non_blocking=True)}
    if grad_scale is not None:
        grad_scale = grad_scale.to(kind.device, non_blocking=True)
    if found_inf is not None:
        found_inf = found_inf.to(kind.device, non_blocking=True)
    agree = partial(_sum_over_shards, kind.sharding) if kind.sharding is not None else None
    steps = [state["step"] for state in members.states]
    return CapturableBucket(*members.columns, steps, group, grad_scale, found_inf, agree)


def _locally(p: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four of a DTensor, of a complex tensor or of a tensor of a subclass: real views, local shards."""
    sharded = [isinstance(t, DTensor) for t in (p, grad, exp_avg, exp_avg_sq)]
    if any(sharded) and not all(sharded):
        kinds = ", ".join(type(t).__name__ for t in (p, grad, exp_avg, exp_avg_sq))
        raise RuntimeError(
            f"a parameter of shape {tuple(p.shape)}, its gradient, exp_avg and exp_avg_sq are {kinds}: all of them "
            "must be DTensors, or none"
        )
    if isinstance(p, DTensor) and isinstance(grad, DTensor) and grad.placements != p.placements:
        grad = grad.redistribute(placements=p.placements)
    return _local_real(p), _local_real(grad.resolve_conj()), _local_real(exp_avg), _local_real(exp_avg_sq)


def _local_real(t: Tensor) -> Tensor:
    if isinstance(t, DTensor):
        t = t.to_local()
    return torch.view_as_real(t) if t.is_complex() else t


def _observed(grads: list[Tensor], sharding: Any) -> list[bool]:
    """For each of `grads`, all on one device, whether it has a non-zero element (NaN counts).

    Of shards the whole gradient counts, not the local one alone, so that all processes have the same step count.
    """
    nonzero = torch.stack([torch.count_nonzero(g) for g in grads])
    if sharding is not None:
        _sum_over_shards(sharding, nonzero)
    return [count > 0 for count in nonzero.tolist()]


def _sum_over_shards(sharding: Any, counts: Tensor) -> None:
    """Sum `counts` in place over the processes among which `sharding` divides a tensor."""
    mesh, placements = sharding
    there = counts.to(mesh.device_type)
    for dim, placement in enumerate(placements):
        if not placement.is_replicate():
            torch.distributed.all_reduce(there, group=mesh.get_group(dim))
    if there is not counts:
        counts.copy_(there)
