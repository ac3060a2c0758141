"""Compare the options, the version and the backends of ADOPT over the ranks that train one model together.

The ranks compare through the key-value store of the default process group. The first rank that comes writes its record,
and every later rank gets this record back. That is one short message of each rank, at its first step or when a
DeepSpeed engine is made. No rank waits for another one, so that a rank which never makes an optimizer, or skips a step,
cannot block the others, as it could in a collective.
"""

import functools
import hashlib
import json
import logging
import os
import socket
import sys
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adopt_hf.distributed.sharding import is_dtensor
from adopt_hf.hyperparameters import HYPERPARAMETERS

logger = logging.getLogger("adopt_hf")

Ranks = tuple[int, ...]

_replicated: "weakref.WeakKeyDictionary[Any, Any]" = weakref.WeakKeyDictionary()  # module of DDP -> process group
_engines: "weakref.WeakKeyDictionary[Any, list[Ranks]]" = weakref.WeakKeyDictionary()  # optimizer -> sets of ranks
_compared: "weakref.WeakSet[Any]" = weakref.WeakSet()  # optimizers
_times: Counter[str] = Counter()  # comparisons of this process, by ranks and shapes

CLOCKS = 1.0  # seconds by which the clocks of two machines may differ
_begun = time.time()  # All ranks have begun before one of them steps, because steps need the gradients of all.


def _begin() -> None:
    global _begun
    _begun = time.time()


if hasattr(os, "register_at_fork"):  # Windows has no forks
    os.register_at_fork(after_in_child=_begin)


def note_replicated(module: Any, process_group: Any) -> None:
    """Note that the ranks of `process_group` hold replicas of `module`, whose gradients they average."""
    _replicated[module] = process_group


def compare_engine(optimizer: Any, ranks: Iterable[Ranks]) -> None:
    """Compare the options of the optimizer of a DeepSpeed engine over each of the sets of ranks that share tensors.

    Raises:
        ValueError: If another rank has another version of adopt_hf or other options.
    """
    _engines[optimizer] = sorted(set(ranks))
    for there in _engines[optimizer]:
        _compare_options(optimizer.param_groups, there, "engine")


def compare_options(optimizer: Any) -> None:
    """Compare the options at the first step of an optimizer whose parameters are in DDP, or are sharded by FSDP.

    Raises:
        ValueError: If another rank has another version of adopt_hf or other options.
    """
    if optimizer in _engines or optimizer in _compared:
        return
    for ranks, what in _spread(optimizer.param_groups):
        _compare_options(optimizer.param_groups, ranks, what)


def compare_backends(optimizer: Any, words: Iterable[str]) -> None:
    """Warn if another rank updates with other backends in its first step. The later calls do nothing.

    Args:
        optimizer: The optimizer.
        words: The names of the backends of this rank, in words.
    """
    if optimizer in _compared:
        return
    _compared.add(optimizer)
    ours = sorted(set(words))
    engines = [(ranks, "engine") for ranks in _engines.get(optimizer, ())]
    for ranks, what in engines or _spread(optimizer.param_groups):
        first = _exchange(ranks, f"backends of {what}", {"backends": ours})
        if first is not None and ours and first["backends"] and first["backends"] != ours:
            _warn_of_backends(_name(_here()), ", ".join(ours), _name(first), ", ".join(first["backends"]))


@functools.cache  # once a process
def _warn_of_backends(us: str, ours: str, them: str, theirs: str) -> None:
    logger.warning(
        "%s updates with %s, and %s with %s: their results can differ in the last bit, so replicas of the model can "
        "drift apart, and a run depends on which machine has which rank. A warning in the log of one of them says why "
        'it does not use the faster one. Mend that, or set backend="foreach" or "reference" on all ranks',
        *(us, ours, them, theirs),
    )


# -- the ranks that train together -------------------------------------------------------------------------------------


def _spread(groups: Sequence[Mapping[str, Any]]) -> list[tuple[Ranks, str]]:
    """Return the sets of ranks that share parameters of these groups, each with a name for what they share."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return []
    params = [p for group in groups for p in group["params"]]
    found: set[Ranks] = {tuple(p.device_mesh.mesh.flatten().tolist()) for p in params if is_dtensor(p)}
    ours = set(params)
    for module, process_group in list(_replicated.items()):
        if not ours.isdisjoint(module.parameters()):
            found.add(tuple(torch.distributed.get_process_group_ranks(process_group)))
    # Two optimizers of one model may take their first steps in another order. Shapes tell them apart.
    shapes = _short(str([[tuple(p.shape) for p in group["params"]] for group in groups]))
    spread = [(ranks, shapes) for ranks in sorted(found)]
    if not spread and any(getattr(p, "_fsdp_flattened", False) for p in params):  # by FSDP1, in uneven parts
        return [(tuple(range(torch.distributed.get_world_size())), "FSDP1")]
    return spread


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# -- the comparison ----------------------------------------------------------------------------------------------------


def _compare_options(groups: Sequence[Mapping[str, Any]], ranks: Ranks, what: str) -> None:
    ours = {"version": _version(), "groups": [_plain(group) for group in groups]}
    first = _exchange(ranks, f"options of {what}", ours)
    if first is None:
        return
    us, them = _name(_here()), _name(first)
    if first["version"] != ours["version"]:
        raise ValueError(
            f"{us} has adopt_hf {ours['version']}, and {them} has adopt_hf {first['version']}, but they train one "
            "model: install the same version on all machines"
        )
    if len(first["groups"]) != len(groups):
        raise ValueError(
            f"the ADOPT of {us} has {len(groups)} param groups, and that of {them} has {len(first['groups'])}, but "
            "they train one model: make the same param groups on all ranks"
        )
    for index, (theirs, mine) in enumerate(zip(first["groups"], json.loads(json.dumps(ours["groups"])), strict=True)):
        names = [name for name in mine if mine[name] != theirs.get(name)]
        if names:
            here, there = (", ".join(f"{name}={side.get(name)!r}" for name in names) for side in (mine, theirs))
            raise ValueError(
                f"{us} has {here} in param group {index}, and {them} has {there}, but they train one model: give all "
                "ranks the same options, such as learning_rate, weight_decay and optim_args of TrainingArguments"
            )


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a param group in values that JSON has."""
    options = {name: group[name] for name in (*HYPERPARAMETERS, "betas") if name in group}
    return {name: _number(value) if isinstance(value, Tensor) else value for name, value in options.items()}


def _number(value: Tensor) -> float | str:
    capturing = value.is_cuda and torch.cuda.is_current_stream_capturing()  # a graph cannot wait for the number
    return "a tensor" if capturing else float(value)


def _exchange(ranks: Ranks, what: str, record: dict[str, Any]) -> dict[str, Any] | None:
    """Return the record of the first of `ranks` that has called this for `what`, or None if that is this rank.

    A process calls this for the same `ranks` and `what` more than once if it trains more than once. The n-th call meets
    the n-th call of the others. torchrun keeps the store when it restarts the processes (pytorch/pytorch#135712), so
    that a record may be that of a process which has ended. Its time tells, and the new record takes its place.
    """
    if len(ranks) < 2:
        return None
    key = f"{_short(str(ranks))} {what}"
    _times[key] += 1
    written = json.dumps(_here() | {"time": time.time()} | record)
    try:
        # torch has no public name for the store. The store of a process group that is only a stand-in has no methods.
        store = torch.distributed.distributed_c10d._get_default_store()
        expected, first = "", {"rank": -1, "time": 0.0}
        while first["rank"] != torch.distributed.get_rank() and first["time"] < _begun - CLOCKS:
            expected = store.compare_set(f"adopt_hf {key} {_times[key]}", expected, written).decode()
            first = json.loads(expected)
    except (RuntimeError, AttributeError) as error:
        logger.info("the ranks cannot be asked whether they have the same options: %s", error)
        return None
    return None if first["rank"] == torch.distributed.get_rank() else first


def _here() -> dict[str, Any]:
    return {"rank": torch.distributed.get_rank(), "host": socket.gethostname()}


def _name(record: Mapping[str, Any]) -> str:
    return f"rank {record['rank']} (on {record['host']})"


def _version() -> str:
    return str(sys.modules[__name__.partition(".")[0]].__version__)
