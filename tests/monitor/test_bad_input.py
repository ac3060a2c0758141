"""Errors of a Monitor, and those of a step that it must not hide."""

import math
import re
from typing import Any

import pytest
import torch
from torch import nn

import adopt_hf
from adopt_hf.distributed.flat import Partition, Stretch


def an_adopt() -> adopt_hf.ADOPT:
    return adopt_hf.ADOPT([nn.Parameter(torch.ones(2))])


def test_a_gradient_that_the_step_refuses_is_refused_by_the_step() -> None:
    rows = nn.Embedding(5, 4, sparse=True)
    optimizer = adopt_hf.ADOPT(rows.parameters())
    monitor = adopt_hf.Monitor(optimizer, rows, every=1)
    rows(torch.arange(3)).sum().backward()
    with pytest.raises(RuntimeError, match="ADOPT does not support sparse gradients"):
        optimizer.step()
    assert monitor.figures() == {}


@pytest.mark.parametrize("every", [0, -3, True, 2.5, math.inf, "100"])
def test_a_wrong_interval_is_refused(every: Any) -> None:
    wanted = re.escape(f"every must be a whole number of steps >= 1 or None, got {every!r}")
    with pytest.raises(ValueError, match=wanted):
        adopt_hf.Monitor(an_adopt(), every=every)


def test_what_is_no_optimizer_or_no_model_is_refused() -> None:
    adamw: Any = torch.optim.AdamW([nn.Parameter(torch.ones(2))])
    for wrong, said in ((adamw, "AdamW"), (adopt_hf.ADOPT, "the class ADOPT"), (None, "NoneType")):
        with pytest.raises(ValueError, match=f"a Monitor observes an ADOPT, got {said}"):
            adopt_hf.Monitor(wrong)
    model: Any = 100  # meant as the interval
    optimizer = an_adopt()
    with pytest.raises(ValueError, match=r"model must be a torch.nn.Module or None, got 100"):
        adopt_hf.Monitor(optimizer, model)
    assert optimizer.monitor is None


def test_parameters_that_are_cut_without_a_mesh_are_refused() -> None:
    """DeepSpeed's AutoTP and Megatron mark them; a flat parameter of ZeRO has the marks of its tensors."""
    mark = nn.Parameter(torch.ones(2))
    mark.tensor_model_parallel = True  # type: ignore[attr-defined]
    in_groups = adopt_hf.ADOPT([nn.Parameter(torch.ones(2)), mark])
    flat = nn.Parameter(torch.ones(2))
    in_a_partition = adopt_hf.ADOPT([flat])
    partition = Partition(1, [Stretch(0, 0, 2)], lambda: [True], lambda counts: None, is_cut=True)
    in_a_partition.set_partition(flat, partition)
    for optimizer in (in_groups, in_a_partition):
        with pytest.raises(ValueError, match=r"AutoTP.* has cut: .* use the tensor parallelism of transformers"):
            adopt_hf.Monitor(optimizer)
        assert optimizer.monitor is None
    whole = nn.Parameter(torch.ones(2))
    whole.tensor_model_parallel = False  # type: ignore[attr-defined]
    adopt_hf.Monitor(adopt_hf.ADOPT([whole]))
