"""Look into the steps of ADOPT: the share of clipped elements, the size of the updates, and what is not observed yet.

The figures are those of whole tensors, however the tensors are spread over processes.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adopt_hf.backends import capture
from adopt_hf.distributed import sharding
from adopt_hf.distributed.flat import Partition
from adopt_hf.identity import innermost, is_adopt_optimizer
from adopt_hf.monitor.counts import counted
from adopt_hf.optimizer import ADOPT
from adopt_hf.plan import build
from adopt_hf.state import names

logger = logging.getLogger("adopt_hf")

PREFIX = "adopt"  # of the names in the logs
LAYERS = 5  # that are clipped most
TOO_MANY, FOR_STEPS = 0.5, 200  # the share of clipped elements that is warned of, and for how long it must last

_warned: set[str] = set()  # in this process


class Row(NamedTuple):
    """A tensor in an observed step."""

    group: int
    name: str
    param: Tensor  # of the optimizer
    partition: Partition | None  # of a flat parameter
    tensor: int  # its number in a flat parameter, else 0
    steps: float  # that it had done before
    has_gradient: bool


class Monitor:
    """Observe some of the steps of an ADOPT, and return figures for the logs.

    An observed step costs some thirty passes over the parameters, in pieces of 2**19 elements, and one collective for
    each way in which parameters are spread over processes. Every process must observe the same steps. Steps that a
    CUDA graph replays are not seen. An optimizer has one monitor, the last that was made.

    Args:
        optimizer: An ADOPT, by itself or in the wrappers of Accelerate and DeepSpeed. Those must be there already.
        model: The model, whose names layers get. Default: the `param_names` of the optimizer, or numbers.
        every: Observe each step whose number is a multiple of it. Default: those before which `is_due` is True.

    Raises:
        ValueError: If `every` is not a whole number of at least 1, the optimizer is not ADOPT, or `model` is no module.
            Also if DeepSpeed's AutoTP or Megatron has cut parameters.
    """

    def __init__(self, optimizer: Any, model: nn.Module | None = None, every: int | None = None) -> None:
        optimizer = innermost(optimizer)
        if not is_adopt_optimizer(optimizer) or isinstance(optimizer, type):
            got = f"the class {optimizer.__name__}" if isinstance(optimizer, type) else type(optimizer).__name__
            raise ValueError(f"a Monitor observes an ADOPT, got {got}")
        if model is not None and not isinstance(model, nn.Module):
            raise ValueError(f"model must be a torch.nn.Module or None, got {model!r}")
        if every is not None and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
            raise ValueError(f"every must be a whole number of steps >= 1 or None, got {every!r}")
        _check_not_cut(optimizer)
        self.is_due = False  # whether steps that begin now are observed
        self.steps = 0  # that have begun, observed or not
        self.every = every
        self._optimizer: ADOPT = optimizer
        named = () if model is None else model.named_parameters()
        self._names: dict[Tensor, str] = {p: names.without_wrappers(name) for name, p in named}
        # ZeRO 1 and 2 show one group in each call of step(), and ZeRO 3 shows parameters during the call only.
        self._group_of: dict[Tensor, int] = {}
        self._note_groups()
        self._seen: set[Tensor] = set()  # in this step
        self._is_observed = False  # this step
        self._rows: list[Row] = []  # of the step that is observed
        self._tables: list[Tensor] = []
        self._figures: dict[str, float] = {}  # of the last observed step, until they are taken
        self._clipped_since: int | None = None
        optimizer.monitor = self

    def detach(self) -> None:
        """Observe no further step."""
        if self._optimizer.monitor is self:
            self._optimizer.monitor = None

    @torch.no_grad()
    def observe(self, groups: Sequence[dict[str, Any]] | None, first: int) -> None:
        """Look at the gradients and the state of `groups`, or of all param groups; `step()` calls this first.

        A step may come in parts: LayerwiseADOPT updates one parameter after the other, and ZeRO 3 some of them in each
        call of `step()`. The next step begins with a parameter that has been there in this one.
        """
        groups = groups or self._optimizer.param_groups
        params = {p for group in groups for p in group["params"]}
        if self._seen.isdisjoint(params) and self.steps:
            self._seen |= params
        else:
            self.settle()
            self.steps += 1
            self._seen = params
            self._is_observed = self.is_due or (self.every is not None and self.steps % self.every == 0)
        if self._is_observed and not capture.is_capturing():
            build.check(groups, self._optimizer.partitions)  # or the step raises an error for what cannot be counted
            self._look(groups, first)

    def figures(self) -> dict[str, float]:
        """Return the figures of the last observed step, and none if they have been returned before.

        Returns:
            By name: "adopt/clipped", the share of the updated elements whose normalised gradient was clipped;
            "adopt/update_to_weight", the RMS of lr*m over the RMS of the weights, of the updated elements;
            "adopt/rms_sqrt_v"; "adopt/unobserved", the share of elements that have had no gradient but zero;
            "adopt/nonfinite_v", a number of elements. The same as "adopt/group_0/clipped" and so on where there are
            several param groups. "adopt/clipped/LAYER" for the five layers with the largest share.
        """
        self.settle()
        figures, self._figures = self._figures, {}
        return figures

    def _look(self, groups: Sequence[dict[str, Any]], first: int, with_gradients: bool = True) -> None:
        """Count what there is to count of these groups, over all processes."""
        optimizer, number = self._optimizer, first
        scale = getattr(optimizer, "grad_scale", None)
        grad_scale = 1.0 if scale is None else scale.item()
        self._note_groups()
        spread: dict[Any, list[tuple[list[Row], Tensor]]] = {}
        for group in groups:
            for p in group["params"]:
                partition = optimizer.partitions.get(p)
                state = optimizer.state.get(p, {})
                grad = p.grad if with_gradients else None
                rows = self._rows_of(p, grad is not None, state, partition, number)
                table = counted(p, grad, state, group, partition, [row.steps for row in rows], grad_scale)
                if partition is not None:
                    table = table.to("cpu", torch.float64)
                    partition.total(table)
                    self._add(rows, table)
                else:
                    spread.setdefault((table.device, _spread(p)), []).append((rows, table))
                number += 1
        for (_, how), parts in spread.items():
            rows, table = [row for rows, _ in parts for row in rows], torch.cat([table for _, table in parts])
            if how == FSDP1:
                rows = _sum_over_fsdp1(rows, table)
            elif how is not None:
                sharding.sum_over_shards(how, table)
            self._add(rows, table)

    def _note_groups(self) -> None:
        for index, group in enumerate(self._optimizer.param_groups):
            for p in group["params"]:
                self._group_of.setdefault(p, index)

    @torch.no_grad()
    def _look_at_rest(self) -> None:
        """Look at the parameters without a gradient, which LayerwiseADOPT does not show."""
        number = 0
        for group in self._optimizer.param_groups:
            for i, p in enumerate(group["params"]):
                if p not in self._seen:
                    self._look([{**group, "params": [p]}], number + i, with_gradients=False)
            number += len(group["params"])

    def _add(self, rows: list[Row], table: Tensor) -> None:
        self._rows += rows
        self._tables.append(table)

    def _rows_of(
        self, p: Tensor, has_gradient: bool, state: dict[str, Any], partition: Partition | None, number: int
    ) -> list[Row]:
        index = self._group_of[p]
        if partition is None:
            own = self._optimizer.names.get(p) or _own_name(self._optimizer.param_groups, number)
            name = self._names.get(p) or names.without_wrappers(own or f"parameter {number}")
            return [Row(index, name, p, None, 0, float(state.get("step", 0)), has_gradient)]
        steps = partition.steps(state) if state else [0.0] * partition.tensors
        called = [names.without_wrappers(name) for name in partition.names] or [""] * partition.tensors
        return [
            Row(index, called[i] or f"parameter {number}.{i}", p, partition, i, t, has_gradient)
            for i, t in enumerate(steps)
        ]

    def settle(self) -> None:
        """Make figures of what was counted; which tensors the step has updated is known when it is over.

        The next step calls this, and a load of another state, which has other step counts.
        """
        if not self._rows:
            return
        self._look_at_rest()
        values = [row for table in self._tables for row in table.tolist()]
        totals: dict[tuple[str, Any], list[float]] = {}
        for row, counts in zip(self._rows, values, strict=True):
            used = _of_step(counts, row.has_gradient and self._steps_of(row) > row.steps)
            layer = row.name.rpartition(".")[0] or row.name
            for key in (("all", None), ("group", row.group), ("layer", layer)):
                sums = totals.setdefault(key, [0.0] * len(used))
                for i, value in enumerate(used):
                    sums[i] += value
        self._rows, self._tables = [], []
        self._figures = {f"{PREFIX}/{name}": value for name, value in _ratios(totals[("all", None)]).items()}
        groups = {index: sums for (kind, index), sums in totals.items() if kind == "group"}
        for index, sums in sorted(groups.items() if len(groups) > 1 else ()):
            self._figures |= {f"{PREFIX}/group_{index}/{name}": value for name, value in _ratios(sums).items()}
        shares = {layer: _ratios(sums)["clipped"] for (kind, layer), sums in totals.items() if kind == "layer"}
        for layer in sorted(shares, key=lambda layer: (-shares[layer], layer))[:LAYERS]:
            self._figures[f"{PREFIX}/clipped/{layer}"] = shares[layer]
        self._warn_of_clipping(self._figures[f"{PREFIX}/clipped"])

    def _steps_of(self, row: Row) -> float:
        """Return the step count that a tensor has now."""
        state = self._optimizer.state.get(row.param, {})
        if row.partition is not None and state:
            return row.partition.steps(state)[row.tensor]
        return float(state.get("step", 0))

    def _warn_of_clipping(self, share: float) -> None:
        if share <= TOO_MANY:
            self._clipped_since = None
            return
        self._clipped_since = self.steps if self._clipped_since is None else self._clipped_since
        if self.steps - self._clipped_since >= FOR_STEPS and "clipping" not in _warned:
            _warned.add("clipping")
            logger.warning(
                "For %d steps more than half of the elements have been clipped (%.0f %% in the last observed step): "
                "v, the mean of the squared gradients, does not follow the gradients. Write beta2_warmup=true, or a "
                "smaller beta2 (it is %g). If the gradients have grown since the run was started, look for the reason.",
                self.steps - self._clipped_since,
                100 * share,
                self._optimizer.param_groups[0]["betas"][1],
            )


def _check_not_cut(optimizer: ADOPT) -> None:
    """Raise ValueError if parameters are parts of tensors, and nothing says where the others are."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if any(map(sharding.is_cut_without_mesh, params)) or any(each.is_cut for each in optimizer.partitions.values()):
        raise ValueError(
            "a Monitor cannot observe parameters that the tensor parallelism of DeepSpeed (AutoTP) or Megatron has "
            "cut: they do not say which processes share them, and the figures would be those of one process. Remove "
            "the monitor, or use the tensor parallelism of transformers, DistributedConfig(tp_size=...)"
        )


FSDP1 = "FSDP1"  # its parameters are plain tensors that do not say how they are spread


def _spread(p: Tensor) -> Any:
    """Return how a parameter that is not flat is spread over processes: as DTensors say it, FSDP1, or None."""
    if getattr(p, "_fsdp_flattened", False):
        return FSDP1
    return sharding.sharding_of(p)


def _sum_over_fsdp1(rows: list[Row], table: Tensor) -> list[Row]:
    """Sum counts in place over all processes, and return the rows as all processes together have them.

    A process that holds no element of a tensor has neither a gradient nor a step count of it.
    """
    with_gradient = torch.tensor([[row.has_gradient] for row in rows], dtype=table.dtype, device=table.device)
    whole = torch.cat([table, with_gradient], 1)
    if whole.device.type == "cpu" and "cpu:" not in torch.distributed.get_backend_config():  # offload beside nccl
        whole = whole.to(torch.accelerator.current_accelerator())
    torch.distributed.all_reduce(whole)
    table.copy_(whole[:, :-1])
    there = (whole[:, -1] > 0).tolist()
    # Without an element here, a gradient elsewhere says that the step counts: FSDP1's step() itself skips nothing.
    return [
        row._replace(has_gradient=any_gradient, steps=row.steps if row.param.numel() else -1.0)
        for row, any_gradient in zip(rows, there, strict=True)
    ]


def _own_name(groups: Sequence[Mapping[str, Any]], number: int) -> str | None:
    for group in groups:
        if number < len(group["params"]):
            return str(group["param_names"][number]) if "param_names" in group else None
        number -= len(group["params"])
    return None


def _of_step(counts: Sequence[float], is_updated: bool) -> list[float]:
    """Return elements updated, clipped, squared updates and weights, elements, v, unobserved, not finite."""
    elements, *of_update = counts[:4]
    before, after = counts[4:7], counts[7:10]
    return [elements, *of_update, elements, *after] if is_updated else [0.0, 0.0, 0.0, 0.0, elements, *before]


def _ratios(sums: Sequence[float]) -> dict[str, float]:
    updated, clipped, updates, weights, elements, v, unobserved, nonfinite = sums
    return {
        "clipped": clipped / updated if updated else 0.0,
        "update_to_weight": math.sqrt(updates / weights) if weights else 0.0,
        "rms_sqrt_v": math.sqrt(v / elements) if elements else 0.0,
        "unobserved": unobserved / elements if elements else 0.0,
        "nonfinite_v": nonfinite,
    }
