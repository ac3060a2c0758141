"""Figures of whole tensors under FSDP1, whose parameters do not say how they are spread: tensors that are cut as FSDP1
cuts them, and a model that FSDP1 itself has wrapped.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

import adopt_hf

HELD = ((6, 0, 3), (0, 5, 3))  # elements of three tensors that each of two processes holds


def of_fsdp1(rank: int, folder: str) -> None:
    """Write the figures of three steps on tensors that are cut as FSDP1 cuts them with use_orig_params."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(HELD))
    params = [nn.Parameter(part) for part in parts_of_fsdp1(torch.ones, rank)]
    for p in params:
        p._fsdp_flattened = True  # type: ignore[attr-defined]
    torch.save(figures_of_parts(params, rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def parts_of_fsdp1(of: Callable[[int], Tensor], rank: int | None) -> list[Tensor]:
    """Return the part of each tensor that a process holds, or the tensor for None."""
    found = []
    for i, (first, second) in enumerate(zip(*HELD, strict=True)):
        whole = of(first + second) * (i + 1)
        found.append(whole if rank is None else whole.split([first, second])[rank].clone())
    return found


def figures_of_parts(params: list[nn.Parameter], rank: int | None) -> list[dict[str, float]]:
    """Return the figures of three steps. A process has no gradient of a tensor of which it holds nothing."""
    generator = torch.Generator().manual_seed(0)
    optimizer = adopt_hf.ADOPTW(params, lr=0.1)
    monitor = adopt_hf.Monitor(optimizer, every=1)
    found = []
    for _ in range(3):
        for p, part in zip(params, parts_of_fsdp1(lambda n: torch.randn(n, generator=generator), rank), strict=True):
            p.grad = part if p.numel() else None
        optimizer.step()
        found.append(monitor.figures())
    return found


def test_fsdp1_has_the_figures_of_whole_tensors(tmp_path: Path) -> None:
    mp.spawn(of_fsdp1, (str(tmp_path),), nprocs=len(HELD))
    wanted = figures_of_parts([nn.Parameter(whole) for whole in parts_of_fsdp1(torch.ones, None)], None)
    assert wanted[2]["adopt/update_to_weight"] > 0
    for rank in range(len(HELD)):
        for found, one in zip(torch.load(tmp_path / f"{rank}.pt"), wanted, strict=True):
            assert found == pytest.approx(one, rel=1e-6)


def a_model() -> nn.Module:
    """The tables' later rows have exactly zero gradients at first; 111 elements, which two processes must pad."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 1))


def figures_of_model(model: nn.Module, rank: int, world: int) -> list[dict[str, float]]:
    """Return the figures of eight steps on a share of the batch."""
    optimizer = adopt_hf.ADOPTW(model.parameters(), lr=0.05, weight_decay=0.1)
    monitor = adopt_hf.Monitor(optimizer, model, every=1)
    found = []
    for step in range(8):
        tokens = torch.randint(5 if step < 4 else 10, (8,), generator=torch.Generator().manual_seed(step))
        mine = tokens.chunk(world)[rank]
        (model(mine).squeeze(-1) - torch.sin(mine.float())).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(monitor.figures())
    return found


def of_real_fsdp1(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(HELD))
    for original in (True, False):
        model = FullyShardedDataParallel(a_model(), device_id=torch.device("cpu"), use_orig_params=original)
        torch.save(figures_of_model(model, rank, len(HELD)), f"{folder}/{rank}-{original}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_model_in_fsdp1_has_the_figures_of_one_process(tmp_path: Path) -> None:
    mp.spawn(of_real_fsdp1, (str(tmp_path),), nprocs=len(HELD))
    wanted = figures_of_model(a_model(), 0, 1)
    assert [one["adopt/unobserved"] > 0 for one in wanted] == [True] * 8
    padded = 1 / 111  # without use_orig_params the padding of the one flat parameter counts as elements
    for rank in range(len(HELD)):
        for original in (True, False):
            for found, one in zip(torch.load(tmp_path / f"{rank}-{original}.pt"), wanted, strict=True):
                if original:
                    assert found == pytest.approx(one, rel=1e-4)
                else:
                    for name in ("clipped", "update_to_weight", "rms_sqrt_v", "unobserved", "nonfinite_v"):
                        assert found[f"adopt/{name}"] == pytest.approx(one[f"adopt/{name}"], abs=padded), name
