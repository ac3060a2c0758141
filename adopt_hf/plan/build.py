"""Plan one optimizer step: create missing state, group tensors that share scalars into buckets, choose their backends.

The plan is kept for the next step, see `adopt_hf.plan.kept`.
"""

from collections import defaultdict
from collections.abc import Hashable, Mapping, MutableMapping, Sequence
from functools import partial
from itertools import compress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from adopt_hf import backends
from adopt_hf.backends.bucket import Bucket, CapturableBucket, Memory, RoundedBucket, check_shapes
from adopt_hf.backends.dense import Columns, is_plain
from adopt_hf.distributed.flat import Partition
from adopt_hf.distributed.sharding import local_real, locally, shard, sharding_of, sum_over_shards
from adopt_hf.plan.entries import UNKNOWN, Entry, FlatEntry, Plan, Waiting, observed
from adopt_hf.plan.kept import KeptPlan, WithGradient, is_clipped, is_coupled
from adopt_hf.state import prepare, rounding
from adopt_hf.state.formats import Format, format_of

Kept = dict[Hashable, KeptPlan]


class Kind(NamedTuple):
    """The properties that all parameters of a bucket share, in addition to the step count."""

    group: int
    device: torch.device
    dtype: torch.dtype
    grad_dtype: torch.dtype
    format: Format
    is_flat: bool
    plain: bool = True  # whether no local tensor is of a tensor subclass
    sharding: Any = None  # the mesh and the placements of DTensors


class Members(NamedTuple):
    """The parameters of one kind that have a gradient, one entry per parameter in each list."""

    params: list[Tensor]
    states: list[dict[str, Any]]
    columns: Columns  # their real local tensors
    scales: list[Tensor]  # scales of 8-bit moments, otherwise empty
    numbers: list[int]  # their numbers among all parameters
    positions: list[int]  # their positions among the parameters with a gradient

    def only(self, indices: Sequence[int]) -> "Members":
        p, g, m, v = ([column[i] for i in indices] for column in self.columns)
        params, states = [self.params[i] for i in indices], [self.states[i] for i in indices]
        scales = [self.scales[i] for i in indices] if self.scales else []
        numbers, positions = [self.numbers[i] for i in indices], [self.positions[i] for i in indices]
        return Members(params, states, (p, g, m, v), scales, numbers, positions)


def next_plan(
    groups: Sequence[dict[str, Any]],
    states: MutableMapping[Tensor, dict[str, Any]],
    partitions: Mapping[Tensor, Partition],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    compiling: bool,
    first: int = 0,
    kept: Kept | None = None,
    key: Hashable = None,
) -> Plan:
    """Return the plan for all parameters that have a gradient.

    Args:
        groups: Param groups.
        states: States of the parameters. A parameter at its first gradient gets a state.
        partitions: Partitions of the flat parameters.
        grad_scale: Factor by which a GradScaler's gradients are too large, one element, or None for 1.
        found_inf: One element that is not zero if a gradient is not finite, or None. Nothing is updated then.
        compiling: Whether `torch.compile` traces the step. Numbers that change from step to step are tensors then.
        first: Number of the first parameter among all parameters of the optimizer. Default: 0.
        kept: Plans of earlier steps, by key. The plan of this step is added. Default: None, which keeps no plan.
        key: Key of the plan, for callers that each plan a part of the parameters. Default: None.

    Raises:
        RuntimeError: If a gradient is sparse, or a backend asked for by name cannot run. No parameter has been changed.
        ValueError: If a number in a group is outside its range. No parameter has been changed.
    """
    if compiling or kept is None:
        plan, grads = _new_plan(groups, states, partitions, compiling, first, keep=False)
        return plan.plan(groups, grads, None, grad_scale, found_inf, compiling)
    if key is None and partitions:  # ZeRO 3 puts each flat parameter into the groups in turn
        key = tuple(id(p) for group in groups for p in group["params"])
    old = kept.get(key)
    held = None if old is None else old.gradients(groups, states, partitions)
    if old is not None and held is not None:
        return old.plan(groups, *held, grad_scale, found_inf)
    plan, grads = _new_plan(groups, states, partitions, compiling, first, keep=True)
    kept.pop(key, None)
    if key is None or isinstance(key, tuple):  # do not keep replaced parameters alive
        alive = set(map(id, partitions)) if isinstance(key, tuple) else set()
        for other in [k for k in kept if not (isinstance(k, tuple) and alive.issuperset(k))]:
            del kept[other]
    if plan.known is not None:
        kept[key] = plan
    return plan.plan(groups, grads, None, grad_scale, found_inf)


def _new_plan(
    groups: Sequence[dict[str, Any]],
    states: MutableMapping[Tensor, dict[str, Any]],
    partitions: Mapping[Tensor, Partition],
    compiling: bool,
    first: int,
    keep: bool,
) -> tuple[KeptPlan, list[Tensor]]:
    """Return a new plan, and the local gradients."""
    check(groups, partitions)
    entries: list[Entry] = []
    flats: list[FlatEntry] = []
    waiting: list[Waiting] = []
    kinds, having, columns = _by_kind(groups, states, partitions, first)
    check_shapes(*columns)
    for kind, members in kinds.items():
        group = groups[kind.group]
        backend = backends.choose(
            "reference" if compiling and kind.format.is_plain else group["backend"],
            kind.device,
            kind.dtype,
            capturable=group["capturable"],
            plain=kind.plain,
            grad_dtype=kind.grad_dtype,
            coupled=is_coupled(group),
            clipped=is_clipped(group),
            format=kind.format,
        )
        if group["capturable"]:
            entries.append(_capturable(members, kind, backend))
        elif kind.is_flat:
            flats += _flat(members, kind, backend, partitions)
        else:
            new_entries, unobserved = _by_step(members, kind, backend, rounding.seed_of(group))
            entries += new_entries
            waiting += unobserved
    plan = KeptPlan(entries, flats, waiting)
    if (
        keep
        and having.params
        and all(kind.plain for kind in kinds)  # a tensor subclass has no address to compare
        and all(w.sharding is None for w in waiting)  # processes agree on them only when a plan is made
    ):
        plan.remember(groups, states, having)
    return plan, columns[1]


def check(groups: Sequence[dict[str, Any]], partitions: Mapping[Tensor, Partition]) -> None:
    """Raise RuntimeError if a step of these param groups is not possible."""
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
                "on the host: remove it"
            )


def _by_kind(
    groups: Sequence[dict[str, Any]],
    states: MutableMapping[Tensor, dict[str, Any]],
    partitions: Mapping[Tensor, Partition],
    first: int,
) -> tuple[dict[Kind, Members], WithGradient, Columns]:
    by_key: dict[tuple[Any, ...], Members] = defaultdict(lambda: Members([], [], ([], [], [], []), [], [], []))
    having = WithGradient([], [], [])
    everywhere: Columns = ([], [], [], [])
    before = first  # number of the group's first parameter
    for index, group in enumerate(groups):
        plain_format = Format(32, group["block_size"], False)
        all_plain = group["state_bits"] == 32 and not group["bf16_stochastic_round"]
        for position, p in enumerate(group["params"]):
            grad = p.grad
            if grad is None:
                continue
            state = states[p]
            partition = partitions.get(p) if partitions else None
            is_flat = partition is not None
            format = plain_format if all_plain else format_of(p, group, position, is_flat)
            number = before + position
            theta, g, (m, v, own_scales) = p, grad, prepare.moments(p, state, format, partition, group, number)
            if type(p) in (Parameter, Tensor) and type(g) is type(m) is type(v) is Tensor and not p.is_complex():
                key: tuple[Any, ...] = (index, p.device, p.dtype, g.dtype, format, is_flat)
            else:
                sharding = sharding_of(p)
                theta, g, m, v = locally(p, g, m, v)
                plain = all(map(is_plain, (theta, g, m, v)))
                key = (index, p.device, p.dtype, g.dtype, format, is_flat, plain, sharding)
            params, of_params, columns, scales, numbers, positions = by_key[key]
            params.append(p)
            of_params.append(state)
            numbers.append(number)
            positions.append(len(having.params))
            having.params.append(p)
            having.states.append(state)
            having.eight_bits.append(own_scales is not None)
            for column, of_all, t in zip(columns, everywhere, (theta, g, m, v), strict=True):
                column.append(t)
                of_all.append(t)
            if own_scales is not None:
                scales.append(local_real(own_scales))
        before += len(group["params"])
    return {Kind(*key): members for key, members in by_key.items()}, having, everywhere


def _by_step(members: Members, kind: Kind, backend: backends.Backend, seed: int) -> tuple[list[Entry], list[Waiting]]:
    """Group whole tensors of one kind by step count. Tensors at t == 0 with an all-zero gradient wait (8)."""
    by_step: dict[float, list[int]] = defaultdict(list)
    for i, state in enumerate(members.states):
        by_step[float(state["step"])].append(i)
    entries, waiting = [], []
    for t, indices in by_step.items():
        if t == 0:
            seen = observed([members.columns[1][i] for i in indices], kind.sharding)
            unseen = [members.positions[i] for i, there in zip(indices, seen, strict=True) if not there]
            if unseen:
                waiting.append(Waiting(unseen, kind.sharding))
            indices = list(compress(indices, seen))
        if not indices:
            continue
        together = members if len(indices) == len(members.params) else members.only(indices)
        thetas, _, ms, vs = together.columns
        bucket: Bucket | RoundedBucket
        prefixes: list[int] = []
        if kind.format.is_plain:
            bucket = Bucket(thetas, [], ms, vs, UNKNOWN, Memory())
        else:
            bucket = RoundedBucket(thetas, [], ms, vs, together.scales, [], kind.format, UNKNOWN, Memory())
            prefixes = [rounding.key((seed, number, *shard(kind.sharding))) for number in together.numbers]
        entries.append(
            Entry(backend, kind.group, bucket, together.positions, together.states, kind.sharding, t, prefixes)
        )
    return entries, waiting


def _flat(
    members: Members, kind: Kind, backend: backends.Backend, partitions: Mapping[Tensor, Partition]
) -> list[FlatEntry]:
    """Return the flat parameters of one kind."""
    params, states, (_, _, ms, vs), _, _, positions = members
    scales: Sequence[Tensor | None] = members.scales or [None] * len(params)
    return [
        FlatEntry(backend, kind.group, position, p, m, v, own_scales, state, partitions[p], kind.format)
        for position, p, m, v, own_scales, state in zip(positions, params, ms, vs, scales, states, strict=True)
    ]


def _capturable(members: Members, kind: Kind, backend: backends.Backend) -> Entry:
    for state in members.states:
        if state["step"].device != kind.device or state["step"].dtype != torch.float32:
            state["step"] = state["step"].to(kind.device, torch.float32)
    steps = [state["step"] for state in members.states]
    p, _, m, v = members.columns
    agree = None if kind.sharding is None else partial(sum_over_shards, kind.sharding)
    bucket = CapturableBucket(p, [], m, v, steps, {}, None, None, agree, Memory())
    return Entry(backend, kind.group, bucket, members.positions, members.states, kind.sharding, steps=steps)
