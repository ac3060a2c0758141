"""The optimizer: torch's interface, lazy state, buckets of like tensors, and their dispatch to a backend."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import Optimizer, ParamsT

from adopt_hf import algorithm, backends, states
from adopt_hf.algorithm import HYPERPARAMETERS, StepScalars
from adopt_hf.partition import Partition, counted

DEFAULTS: dict[str, Any] = {
    "betas": (HYPERPARAMETERS["beta1"].default, HYPERPARAMETERS["beta2"].default),
    "backend": "auto",
    **{name: row.default for name, row in HYPERPARAMETERS.items() if name not in ("beta1", "beta2")},
}

# What other optimizers call things, and what to write here.
INSTEAD = {
    "clip_lambda": (
        "write clip_exp=0.25 for clip_lambda=lambda step: step**0.25 (any other exponent likewise), "
        "or clip_exp=None for clip_lambda=None"
    ),
    "beta1": "write betas=(beta1, beta2)",
    "beta2": "write betas=(beta1, beta2)",
    "decoupled": "write decouple=True",
    "weight_decouple": "write decouple=True",
    "foreach": "write backend='foreach' or backend='reference'",
    "fused": "write backend='fused'",
    "capturable": "leave it out",
    "differentiable": "leave it out",
}


class Four(NamedTuple):
    """What a backend takes of one parameter, or of a span of a flat one: real local tensors of one shape."""

    param: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


class Bucket(NamedTuple):
    """What one call of a backend updates: of one param group, device, dtype and step count."""

    fours: list[Four]
    scalars: StepScalars
    step: backends.BackendStep


class Plan(NamedTuple):
    """All that one step does: the buckets to update, and what becomes of the step counts afterwards."""

    buckets: list[Bucket]
    counts: list[tuple[dict[str, Any], dict[str, Any]]]  # a parameter's state, and its new entries


class ADOPT(Optimizer):
    """ADOPT (Taniguchi et al., NeurIPS 2024, arXiv 2411.02853, Algorithm 2): Adam that converges with any beta2.

    The equations are those of `adopt_hf.algorithm`. `step()` changes parameters and state in place, not the gradients.

    Args:
        params: parameters, (name, parameter) pairs or param groups; real or complex, of any floating dtype, on any
            devices, plain tensors or DTensors. Gradients must be dense.
        lr: learning rate, >= 0; a float, or a one-element tensor.
        betas: (beta1, beta2), each in [0, 1).
        eps: >= 0, the lower bound of sqrt(v).
        weight_decay: >= 0; added to the gradient as L2 (the authors' default), or, with `decouple`, as AdamW does.
        decouple: weight decay like AdamW's: theta*(1 - lr*weight_decay), from the second step on.
        clip_exp: the normalised gradient is clipped to +-t**clip_exp, t being the completed steps; None: not at all.
        beta2_warmup: use min(beta2, 1 - 1/(t+1)), a running mean to begin with.
        maximize: ascend instead of descend.
        backend: "auto" (the fastest that can run), "reference", "foreach" or "fused". Not saved with the state.

    State of a parameter, created at its first gradient: `step` (0-d float32 CPU tensor), `exp_avg` and `exp_avg_sq`
    (shape of the parameter; float32 for 16-bit parameters, else its dtype).

    Raises:
        ValueError: a hyperparameter outside its range.
        TypeError: an argument that ADOPT does not have; says what to write instead of another implementation's.
        RuntimeError: a `backend` asked for by name that cannot run on a parameter.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = DEFAULTS["lr"],
        betas: tuple[float, float] = DEFAULTS["betas"],
        eps: float = DEFAULTS["eps"],
        weight_decay: float = DEFAULTS["weight_decay"],
        *,
        decouple: bool = False,
        clip_exp: float | None = DEFAULTS["clip_exp"],
        beta2_warmup: bool = False,
        maximize: bool = False,
        backend: str = "auto",
        **unknown: object,
    ) -> None:
        for name in unknown:
            hint = INSTEAD.get(name)
            raise TypeError(f"ADOPT has no argument {name!r}" + (f": {hint}" if hint else ""))
        if callable(weight_decay):  # torch-adopt's fifth positional argument
            raise TypeError(
                f"weight_decay must be a number, got {weight_decay!r}; for a clip_lambda {INSTEAD['clip_lambda']}"
            )
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decouple": decouple,
            "clip_exp": clip_exp,
            "beta2_warmup": beta2_warmup,
            "maximize": maximize,
            "backend": backend,
        }
        self._partitions: dict[Tensor, Partition] = {}
        super().__init__(params, defaults | _check_group(defaults))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a param group; hyperparameters that it does not name are the defaults given at construction.

        Raises:
            ValueError: a hyperparameter outside its range; nothing is added then.
            TypeError: a key that belongs to another implementation.
            RuntimeError: the `backend` asked for by name cannot run on one of the parameters.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, got {type(param_group).__name__}")
        for name in INSTEAD.keys() & param_group.keys():
            raise TypeError(f"ADOPT has no param group option {name!r}: {INSTEAD[name]}")
        super().add_param_group(param_group | _check_group(param_group))
        group = self.param_groups[-1]
        try:
            for p in group["params"]:
                backends.choose(group["backend"], p.device, p.dtype)
        except RuntimeError:
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Do one step with the gradients in `.grad`; parameters without one are left alone.

        Args:
            closure: recomputes the loss and the gradients; called once, with gradients enabled.

        Returns:
            What `closure` returned.

        Raises:
            RuntimeError: a gradient is sparse; nothing has been changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        plan = self._plan(compiling=torch.compiler.is_compiling())
        for bucket in plan.buckets:
            params, grads, exp_avgs, exp_avg_sqs = (list(column) for column in zip(*bucket.fours, strict=True))
            bucket.step(params, grads, exp_avgs, exp_avg_sqs, bucket.scalars)
        _count_steps(plan)
        return loss

    def set_partition(self, param: Tensor, partition: Partition) -> None:
        """Say that `param` is flat: it holds stretches of several tensors, which are counted one by one.

        Args:
            param: 1-d, of one of the param groups, now or when `step()` is called.
            partition: how it is made up.
        """
        self._partitions[param] = partition

    def partition_of(self, param: Tensor) -> Partition:
        """What `set_partition` was told of `param`."""
        return self._partitions[param]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _plan(self, compiling: bool) -> Plan:
        """All that has a gradient, in buckets. Under `torch.compile` the numbers that change are tensors."""
        members: dict[Any, list[Tensor]] = defaultdict(list)
        for index, group in enumerate(self.param_groups):
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.layout != torch.strided:
                    raise RuntimeError(
                        f"ADOPT does not support sparse gradients (got {p.grad.layout} for a parameter of shape "
                        f"{tuple(p.shape)}): use sparse=False in the embedding, or torch.optim.SparseAdam"
                    )
                members[index, p.device, p.dtype, p.grad.dtype].append(p)

        plan = Plan([], [])
        for (index, device, dtype, _), params in members.items():
            group = self.param_groups[index]
            backend = backends.choose("reference" if compiling else group["backend"], device, dtype)
            for p in params:
                self._init_state(p)
            by_step: dict[float, list[Four]] = defaultdict(list)
            for t, four in self._to_update(params, plan):
                by_step[t].append(four)
            for t, fours in by_step.items():
                scalars = algorithm.step_scalars(group, t)
                plan.buckets.append(Bucket(fours, scalars.for_compiler() if compiling else scalars, backend))
        return plan

    def _to_update(self, params: list[Tensor], plan: Plan) -> Iterator[tuple[float, Four]]:
        """What of `params`, all on one device, this step updates, with its step count; notes the new counts in `plan`.

        A tensor at t == 0 whose gradient is all zero is left out (8).
        """
        whole = [p for p in params if p not in self._partitions] if self._partitions else params
        steps = [float(self.state[p]["step"]) for p in whole]
        unobserved: set[Tensor] = set()
        if 0.0 in steps:
            first = [p for p, t in zip(whole, steps, strict=True) if t == 0]
            unobserved = set(first).difference(_observed(first))
        for p, t in zip(whole, steps, strict=True):
            if p not in unobserved:
                state = self.state[p]
                # If it was a flat parameter once, it is counted as a whole from now on.
                was_flat = {"tensor_steps": None} if "tensor_steps" in state else {}
                plan.counts.append((state, {"step": state["step"] + 1, **was_flat}))
                yield t, self._four(p)
        if not self._partitions:
            return
        for p in params:
            if p in self._partitions:
                partition, state, four = self._partitions[p], self.state[p], self._four(p)
                counts = partition.steps(state)
                active = partition.active(four.grad, counts)
                plan.counts.append((state, counted(active, counts)))
                for t, spans in partition.spans(active, counts).items():
                    yield from ((t, Four(*map(span.of, four))) for span in spans)

    def _init_state(self, p: Tensor) -> None:
        state = self.state[p]
        if not state:
            dtype = algorithm.state_dtype(p.dtype)
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
            state["exp_avg"] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)

    def _four(self, p: Tensor) -> Four:
        state = self.state[p]
        return Four(*map(_local_real, (p, _grad(p), state["exp_avg"], state["exp_avg_sq"])))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # torch calls this on every load as well as on unpickling; a pickle has no partitions.
        self.__dict__.setdefault("_partitions", {})
        self.defaults.pop("differentiable", None)  # torch puts it there
        for name, default in DEFAULTS.items():  # what a pickle of an earlier version lacks
            self.defaults.setdefault(name, default)
        for group in self.param_groups:
            for name, default in self.defaults.items():
                group.setdefault(name, default)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict()` returned: this optimizer's, an earlier version's, torch-adopt's or timm Adopt's.

        Moments of 16-bit parameters stay float32 (torch alone would cast them). `backend` is kept as it is here, and
        so is every hyperparameter that the saved group lacks.

        Raises:
            ValueError: the state is Adam's, uses something that ADOPT here does not have, has a hyperparameter outside
                its range, or has a shape that is not the parameter's; nothing has been changed then.
        """
        loaded: dict[str, Any] = {}

        def translate(_: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
            loaded.update(self._translated(saved))
            return loaded

        def restore_precision(_: Optimizer) -> None:
            saved_ids = [i for group in loaded["param_groups"] for i in group["params"]]
            params = [p for group in self.param_groups for p in group["params"]]
            for saved_id, p in zip(saved_ids, params, strict=True):
                saved = loaded["state"].get(saved_id)
                if saved:
                    dtype = algorithm.state_dtype(p.dtype)
                    for name in ("exp_avg", "exp_avg_sq"):
                        self.state[p][name] = saved[name].to(device=p.device, dtype=dtype)

        # torch casts the state to the parameters' dtype between these two; both are taken off again.
        hooks = (
            self.register_load_state_dict_pre_hook(translate),
            self.register_load_state_dict_post_hook(restore_precision, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _translated(self, saved: dict[str, Any]) -> dict[str, Any]:
        """`saved` with the groups and the step counts as this class writes them; `saved` itself is not changed."""
        groups = saved["param_groups"]
        if [len(g["params"]) for g in groups] == [len(g["params"]) for g in self.param_groups]:
            groups = [states.translated_group(old, new) for old, new in zip(groups, self.param_groups, strict=True)]
        # else: torch's own error about the groups says what differs
        state = {key: states.translated_state(value) for key, value in saved["state"].items()}
        for saved_id, p in self._pairs(groups):
            for name in ("exp_avg", "exp_avg_sq"):
                if saved_id in state and state[saved_id] and state[saved_id][name].shape != p.shape:
                    raise ValueError(
                        f"the saved state of parameter {saved_id} has {name} of shape "
                        f"{tuple(state[saved_id][name].shape)}, the parameter has {tuple(p.shape)}: "
                        "this is the state of another model"
                    )
        return saved | {"param_groups": groups, "state": state}

    def _pairs(self, saved_groups: Iterable[Mapping[str, Any]]) -> Iterable[tuple[Any, Tensor]]:
        saved_ids = (i for group in saved_groups for i in group["params"])
        return zip(saved_ids, (p for group in self.param_groups for p in group["params"]), strict=False)


def _check_group(group: Mapping[str, Any]) -> dict[str, Any]:
    checked = algorithm.check_group(group)
    if "backend" in group:
        checked["backend"] = backends.check_name(group["backend"])
    return checked


def _grad(p: Tensor) -> Tensor:
    """The gradient of `p`, sharded as `p` is."""
    grad = p.grad
    assert grad is not None  # _plan has seen it
    if isinstance(p, DTensor) and isinstance(grad, DTensor) and grad.placements != p.placements:
        grad = grad.redistribute(placements=p.placements)
    return grad.resolve_conj()


def _local_real(t: Tensor) -> Tensor:
    """A view of `t` that the backends take: the local shard of a DTensor, the real view of a complex tensor."""
    if isinstance(t, DTensor):
        t = t.to_local()
    return torch.view_as_real(t) if t.is_complex() else t


def _observed(params: list[Tensor]) -> list[Tensor]:
    """Those of `params`, all on one device, whose gradient has a non-zero element (NaN counts).

    Of a DTensor the whole gradient counts, not the local shard alone, so that all shards have the same step count.
    """
    by_mesh: dict[Any, list[Tensor]] = defaultdict(list)
    for p in params:
        by_mesh[(p.device_mesh, p.placements) if isinstance(p, DTensor) else None].append(p)
    observed = []
    for sharding, together in by_mesh.items():
        nonzero = torch.stack([torch.count_nonzero(_local_real(_grad(p))) for p in together])
        if sharding is not None:
            mesh, placements = sharding
            nonzero = nonzero.to(mesh.device_type)
            for dim, placement in enumerate(placements):
                if not placement.is_replicate():
                    torch.distributed.all_reduce(nonzero, group=mesh.get_group(dim))
        observed += [p for p, count in zip(together, nonzero.tolist(), strict=True) if count]
    return observed


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _count_steps(plan: Plan) -> None:
    for state, new in plan.counts:
        # Replaced, not changed in place: other frameworks hand out one tensor to several parameters.
        state.update(new)
        if state.get("tensor_steps", ()) is None:
            del state["tensor_steps"]
