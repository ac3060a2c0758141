"""Every launch mode, by the Trainer and by an Accelerate loop: the same weights, an exact resume, and really ADOPT.

- Parity: after 20 steps the parameters are those of one process on the same global batch.
- Resume: 20 steps are 10, another launch, and 10 more, bit for bit; moments included, in every process.
- Really ADOPT: what was launched is what is meant (world size, distributed type, engine), the optimizer that did the
  steps is ADOPT, with its decay groups and defaults, and its state is sharded where the mode shards.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.launches.matrix import BF16_SHARE, FP32_TOLERANCE, LOOPS, MODES, Matrix, Mode, seen_as
from tests.processes.job import OBSERVED, SAVED, STEPS, make_model
from tests.support.tensors import largest_difference

pytestmark = pytest.mark.distributed

Launched = Callable[..., Path]
CELLS = [pytest.param(mode, loop, id=f"{mode}-{loop}") for mode in MODES for loop in LOOPS]


def arguments(mode: Mode) -> list[str]:
    return ["--bf16"] if mode.bf16 else []


def weights(folder: Path, loop: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(folder / loop / "weights.pt")
    return found


def ranks(folder: Path, loop: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / loop).glob("rank*.json"))]


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return sum(((a[name] - b[name]) ** 2).sum().item() for name in a) ** 0.5


def start(width: int = 18) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in make_model(width).state_dict().items()}


@pytest.mark.parametrize(("mode", "loop"), CELLS)
def test_really_adopt(mode: Mode, loop: str, launched: Launched, matrix: Matrix) -> None:
    seen = ranks(launched(mode.config, *arguments(mode), processes=mode.world_size), loop)
    assert len(seen) == mode.world_size
    for rank in seen:
        assert rank["world_size"] == mode.world_size
        assert rank["distributed_type"] == mode.distributed_type
        assert rank["stage"] == mode.stage
        assert rank["fsdp_version"] == (2 if mode.distributed_type == "FSDP" else None)
        assert rank["wrapper"] == mode.wrapper
        assert tuple(rank["offload"]) == mode.offload  # where Accelerate would put DeepSpeedCPUAdam in its place
        assert rank["optimizer"] == "adopt_hf.optimizer.ADOPTW"
        assert rank["steps"] == [STEPS]
        assert rank["state_keys"] == ["exp_avg", "exp_avg_sq", "step"]
        assert rank["moments_dtype"] == ["torch.float32"]
        assert rank["dtensors"] == mode.dtensors
        assert [group["weight_decay"] for group in rank["groups"]] == [0.1, 0.0]
        for group in rank["groups"]:
            assert group["betas"] == [0.9, 0.9999]
            assert (group["eps"], group["clip_exp"], group["decouple"]) == (1e-6, 0.25, True)
    all_moments, parameters = sum(rank["moments"] for rank in seen), seen[0]["parameters"]
    if mode.sharded:
        assert 2 * parameters <= all_moments <= 2 * parameters * 1.01  # padding
        assert max(rank["moments"] for rank in seen) < 1.1 * all_moments / mode.world_size
    else:
        assert all_moments == 2 * parameters * mode.world_size
    matrix.seen[mode.name] = seen_as(mode)
    matrix.note(mode, loop, "really ADOPT", "yes")


@pytest.mark.parametrize(("mode", "loop"), CELLS)
def test_parity(mode: Mode, loop: str, launched: Launched, matrix: Matrix) -> None:
    single = weights(launched("cpu", processes=1), loop)
    if mode.world_size == 1:  # it is the reference itself
        assert distance(start(), single) > 1
        matrix.note(mode, loop, "parity", "the reference")
        return
    got = weights(launched(mode.config, *arguments(mode), processes=mode.world_size), loop)
    if mode.bf16:
        share = distance(got, single) / distance(start(), single)
        assert share < BF16_SHARE
        matrix.note(mode, loop, "parity", share)
    else:
        difference = largest_difference(got, single)
        assert difference < FP32_TOLERANCE
        matrix.note(mode, loop, "parity", difference)


@pytest.mark.parametrize(("mode", "loop"), CELLS)
def test_resume(mode: Mode, loop: str, launched: Launched, matrix: Matrix) -> None:
    whole = launched(mode.config, *arguments(mode), processes=mode.world_size)
    resumed = launched(mode.config, *arguments(mode), "--resume", whole, processes=mode.world_size)
    a, b = weights(whole, loop), weights(resumed, loop)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
    for before, after in zip(ranks(whole, loop), ranks(resumed, loop), strict=True):
        assert (before["started_at"], after["started_at"]) == (0, SAVED)
        for same in ("digest", "steps", "moments", "groups", "world_size", "distributed_type", "wrapper", "optimizer"):
            assert before[same] == after[same], same
    matrix.note(mode, loop, "resume", "bit for bit")


@pytest.mark.parametrize(("mode", "loop"), CELLS)
def test_the_monitor_sees_whole_tensors(mode: Mode, loop: str, launched: Launched) -> None:
    """Every process has the figures of one process on the same global batch."""
    single = ranks(launched("cpu", processes=1), loop)[0]["figures"]
    assert list(single) == [str(step) for step in range(OBSERVED, STEPS + 1, OBSERVED)]
    for rank in ranks(launched(mode.config, *arguments(mode), processes=mode.world_size), loop):
        assert list(rank["figures"]) == list(single)
        for step, wanted in single.items():
            found = rank["figures"][step]
            for name in ("clipped", "update_to_weight", "rms_sqrt_v", "unobserved", "nonfinite_v"):
                for key in (f"adopt/{name}", f"adopt/group_0/{name}", f"adopt/group_1/{name}"):
                    # An element whose ratio is next to its bound may fall on either side.
                    near = 0.05 if mode.bf16 else 1e-3 if name == "clipped" else 0.0
                    assert found[key] == pytest.approx(wanted[key], rel=0.05 if mode.bf16 else 1e-4, abs=near), key
            layers = [{name for name in one if name.startswith("adopt/clipped/")} for one in (found, wanted)]
            assert layers[0] == layers[1] or (mode.bf16 and len(layers[0]) == len(layers[1]))
            assert not any("parameter" in name for name in layers[0])  # or it would have a number for a name
    assert len({json.dumps(rank["figures"]) for rank in ranks(launched(mode.config), loop)}) == 1


@pytest.mark.parametrize("loop", LOOPS)
def test_stage_0_in_bf16_is_stage_1(loop: str, launched: Launched) -> None:
    """Stage 0 in bf16 calls `step()` on zero gradients first, to allocate state.

    With the paper's rule to the bit on some processors, to a last place of float32 on others. With the warm-up of beta2
    a last place of float32 flips one of bfloat16 on the way; the two stay nearer to each other than to float32.
    """
    of_paper = ("--bf16", "--optim_args", "beta2_warmup=false")
    a, b = (weights(launched(stage, *of_paper), loop) for stage in ("zero0", "zero1"))
    assert largest_difference(a, b) <= 2**-23
    a, b = (weights(launched(stage, "--bf16"), loop) for stage in ("zero0", "zero1"))
    assert distance(a, b) < distance(a, weights(launched("cpu", processes=1), loop)) / 2


@pytest.mark.parametrize("loop", LOOPS)
def test_the_tolerances_tell_another_optimizer(loop: str, launched: Launched) -> None:
    single, adamw = (weights(launched("cpu", *args, processes=1), loop) for args in ((), ("--optim", "adamw_torch")))
    assert largest_difference(adamw, single) > 1000 * FP32_TOLERANCE
    assert distance(adamw, single) / distance(start(), single) > 5 * BF16_SHARE
    assert ranks(launched("cpu", "--optim", "adamw_torch", processes=1), loop)[0]["optimizer"].startswith("torch.optim")
