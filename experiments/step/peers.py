"""The optimizers that are compared, each configured alike, and how to get at them."""

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

ALIKE: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.9999), "eps": 1e-6, "weight_decay": 0.0}
BF16_STATE = "With bf16 parameters its moments are bf16 too: it moves 14 bytes an element, adopt_hf 22."
UNOBSERVED = "Their gradient is zero in every step, at elements drawn once; all other rows have a gradient everywhere."

BASELINE = "adamw-fused"
OURS = "adopt_hf"
EIGHT_BITS = "adopt_hf-8bit"
FEW_UNOBSERVED, HALF_UNOBSERVED = "adopt_hf-8bit-1-in-256-unobserved", "adopt_hf-8bit-half-unobserved"


class Peer(NamedTuple):
    """An optimizer of the comparison."""

    title: str
    make: Callable[[list[Tensor]], Optimizer]
    module: str | None = None  # what must be importable
    distribution: str | None = None  # what its version is looked up by
    devices: tuple[str, ...] = ("cpu", "cuda")
    note: str = ""
    bf16_note: str = ""  # where the parameters are bf16
    compiles: bool = False  # again for every list of tensors, which takes minutes for hundreds of them
    unobserved: float = 0.0  # share of the elements whose gradient is zero in every step
    dense: str | None = None  # the same optimizer where every element has a gradient


def _ours(backend: str, state_bits: int = 32) -> Callable[[list[Tensor]], Optimizer]:
    def make(params: list[Tensor]) -> Optimizer:
        import adopt_hf

        return adopt_hf.ADOPT(params, **ALIKE, backend=backend, state_bits=state_bits)

    return make


def _adamw(**implementation: bool) -> Callable[[list[Tensor]], Optimizer]:
    return lambda params: torch.optim.AdamW(params, **ALIKE, **implementation)


def _deepspeed(params: list[Tensor]) -> Optimizer:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return DeepSpeedCPUAdam(params, **ALIKE)


def _torch_adopt(foreach: bool) -> Callable[[list[Tensor]], Optimizer]:
    def make(params: list[Tensor]) -> Optimizer:
        import adopt

        # It calls a private method that torch has renamed since.
        adopt.ADOPT._cuda_graph_capture_health_check = lambda self: None
        return adopt.ADOPT(params, **ALIKE, foreach=foreach)

    return make


def _timm(params: list[Tensor]) -> Optimizer:
    """Import only timm's file: the package imports torchvision, and accelerate imports every timm that it finds."""
    spec = importlib.util.find_spec("timm")
    assert spec is not None  # `installed` has seen it
    assert spec.origin is not None
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "timm"}
    for name, folder in (("timm", Path(spec.origin).parent), ("timm.optim", Path(spec.origin).parent / "optim")):
        package = types.ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    try:
        adopt = importlib.import_module("timm.optim.adopt").Adopt
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
            del sys.modules[name]
        sys.modules.update(before)
    return adopt(params, **ALIKE, clip_exp=0.25)


def _adopt_of(module: str) -> Callable[[list[Tensor]], Optimizer]:
    return lambda params: importlib.import_module(module).ADOPT(params, **ALIKE)


PEERS: dict[str, Peer] = {
    OURS: Peer("**adopt_hf**", _ours("auto")),
    "adopt_hf-fused": Peer("adopt_hf, fused", _ours("fused")),
    "adopt_hf-foreach": Peer("adopt_hf, foreach", _ours("foreach")),
    "adopt_hf-reference": Peer("adopt_hf, reference", _ours("reference")),
    "adopt_hf-16bit": Peer("adopt_hf, 16-bit moments", _ours("fused", 16)),
    EIGHT_BITS: Peer("adopt_hf, 8-bit moments", _ours("fused", 8)),
    FEW_UNOBSERVED: Peer(
        "adopt_hf, 8-bit moments, 1 element in 256 unobserved",
        _ours("fused", 8),
        note=UNOBSERVED,
        unobserved=1 / 256,
        dense=EIGHT_BITS,
    ),
    HALF_UNOBSERVED: Peer(
        "adopt_hf, 8-bit moments, half of the elements unobserved",
        _ours("fused", 8),
        note=UNOBSERVED,
        unobserved=1 / 2,
        dense=EIGHT_BITS,
    ),
    BASELINE: Peer("torch AdamW, fused", _adamw(fused=True), bf16_note=BF16_STATE),
    "adamw-foreach": Peer("torch AdamW, foreach", _adamw(foreach=True), bf16_note=BF16_STATE),
    "adamw-single": Peer("torch AdamW, single-tensor", _adamw(foreach=False), bf16_note=BF16_STATE),
    "deepspeed-cpu-adam": Peer("DeepSpeedCPUAdam", _deepspeed, "deepspeed", "deepspeed", devices=("cpu",)),
    "torch-adopt-foreach": Peer(
        "torch-adopt, foreach", _torch_adopt(foreach=True), "adopt", "torch-adopt", bf16_note=BF16_STATE
    ),
    "torch-adopt-single": Peer(
        "torch-adopt, single-tensor", _torch_adopt(foreach=False), "adopt", "torch-adopt", bf16_note=BF16_STATE
    ),
    "timm": Peer("timm", _timm, "timm", "timm", bf16_note=BF16_STATE),
    "pytorch_optimizer": Peer(
        "pytorch_optimizer",
        _adopt_of("pytorch_optimizer"),
        "pytorch_optimizer",
        "pytorch_optimizer",
        bf16_note=BF16_STATE,
    ),
    "heavyball": Peer(
        "heavyball",
        _adopt_of("heavyball"),
        "heavyball",
        "heavyball",
        note="Another rule: both betas are debiased, nothing is clipped, bf16 parameters are rounded stochastically. "
        "It goes through torch.compile, whose time is not counted.",
        compiles=True,
    ),
}


@contextmanager
def searching(folder: Path | str | None) -> Iterator[None]:
    """Look for modules in `folder` too, after all other places, within the block.

    What is in that folder stays invisible to accelerate and others that ask what is installed.
    """
    if folder is None:
        yield
        return
    sys.path.append(str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def default_folder() -> str | None:
    """Return the folder in which `make` puts peers that must stay apart from the environment."""
    folder = Path(sys.prefix, "peers")
    return str(folder) if folder.is_dir() else None


def installed(peer: Peer) -> bool:
    """Return whether the peer's module is there. Call it within `searching`."""
    return peer.module is None or importlib.util.find_spec(peer.module) is not None
