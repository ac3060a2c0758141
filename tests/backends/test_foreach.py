"""The cost of a foreach step on a device other than the CPU, counted on meta tensors, which launch and hold nothing:

- at most 24 launches a piece, whatever the number of tensors, their dtype, shape and layout, and the settings;
- at most 256 MiB of temporaries, whether the elements are one tensor's or many;
- no tensor is made by an operation for each tensor;
- a tensor that has other shapes than its moments is refused before anything is changed.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adopt_hf.algorithm import state_dtype, step_scalars
from adopt_hf.backends import foreach
from adopt_hf.backends.bucket import Bucket
from tests.oracle import Settings

WITHOUT_LAUNCH = {"empty", "view", "split_with_sizes", "split", "unbind", "permute", "slice", "transpose"}
MOST_LAUNCHES = 24


class Cost(TorchDispatchMode):
    """Counts launches, and the bytes of the temporaries that live at one time."""

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches = self.peak = 0
        self.given = {t.untyped_storage()._cdata for t in given}
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.launches += name not in WITHOUT_LAUNCH
        if name.endswith("_"):
            return out
        self.made = {key: (ref, size) for key, (ref, size) in self.made.items() if not ref.expired()}
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and (storage := t.untyped_storage())._cdata not in self.given:
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.made.values()))
        return out


def bucket_of(
    shapes: list[tuple[int, ...]], dtype: torch.dtype, settings: Settings, scale: float = 1.0, grad: Any = None
) -> Bucket:
    params = [torch.empty(shape, dtype=dtype, device="meta") for shape in shapes]
    grads = [torch.empty_like(p, dtype=grad or dtype) for p in params]
    m, v = ([torch.empty_like(p, dtype=state_dtype(dtype)) for p in params] for _ in range(2))
    return Bucket(params, grads, m, v, step_scalars(vars(settings), 5, scale))


def cost_of(bucket: Bucket) -> Cost:
    cost = Cost([t for column in bucket[:4] for t in column])
    with cost:
        foreach.step([bucket])
    return cost


SETTINGS = {
    "defaults": Settings(),
    "coupled": Settings(weight_decay=0.1),
    "decoupled": Settings(weight_decay=0.1, decouple=True, maximize=True),
    "no clipping": Settings(clip_exp=None),
    "small beta1": Settings(betas=(0.3, 0.9), beta2_warmup=0.8, weight_decay=0.1),
    "both betas small": Settings(betas=(0.3, 0.4), weight_decay=0.1),
    "everything small": Settings(betas=(0.3, 0.4), weight_decay=0.1, eps=1e-30),
}


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", SETTINGS)
def test_launches_do_not_grow_with_the_number_of_tensors(name: str, dtype: torch.dtype, scale: float) -> None:
    shapes = [(1000,), (30, 40), (2, 3, 4), ()]
    few, many = (cost_of(bucket_of(shapes * n, dtype, SETTINGS[name], scale)) for n in (1, 20))
    assert few.launches == many.launches <= MOST_LAUNCHES


def test_gradients_of_another_dtype_are_cast_in_one_launch() -> None:
    assert cost_of(bucket_of([(7, 8)] * 100, torch.float32, Settings(), grad=torch.bfloat16)).launches <= MOST_LAUNCHES


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "shapes",
    [
        [(2**31 + 5,)],
        [(50_000, 40_000)],
        [(4096, 11008)] * 30,
        [(640, 4096)] * 100,
        [(128_256, 4096), (7,), (128_256, 4096)],
    ],
    ids=["one long", "one of rows", "a model's", "many", "long beside short"],
)
def test_temporaries_stay_within_256_mib(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> None:
    bucket = bucket_of(shapes, dtype, Settings(weight_decay=0.1), scale=2.0)
    elements = sum(t.numel() for t in bucket.params)
    a_piece = 2**28 // (13 if dtype == torch.bfloat16 else 17 if dtype == torch.float64 else 9)
    cost = cost_of(bucket)
    assert 2**27 < cost.peak <= 2**28
    # A piece ends before the tensor, or the part of one, that would not fit.
    assert cost.launches <= MOST_LAUNCHES * (2 * elements // a_piece + 2)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.t(),
    "with gaps": lambda t: t[:, ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tensor_of_another_layout_is_cut_as_well(layout: str) -> None:
    whole = bucket_of([(30_000, 20_000)], torch.bfloat16, Settings())
    p, g, m, v = ([LAYOUTS[layout](t) for t in column] for column in whole[:4])
    bucket = Bucket(p, g, m, v, whole.scalars)
    cost = cost_of(bucket)
    assert 2**26 < cost.peak <= 2**28
    assert cost.launches <= MOST_LAUNCHES * (2 * bucket.params[0].numel() * 13 // 2**28 + 2)


def test_tensors_laid_out_alike_are_handled_in_the_order_of_memory() -> None:
    """torch's fast path for lists asks for equal strides; the copies are contiguous."""
    four = [torch.empty(30, 20, device="meta").t() for _ in range(4)]
    (part,) = foreach._parts((four[0], four[1], four[2], four[3]), 10_000)
    assert all(t.is_contiguous() for t in part)
    four = [torch.empty(2, 3, 4, 5, device="meta").to(memory_format=torch.channels_last) for _ in range(4)]
    (part,) = foreach._parts((four[0], four[1], four[2], four[3]), 10_000)
    assert all(t.is_contiguous() for t in part)
