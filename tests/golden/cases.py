"""The trajectories that are kept: what each one varies, and how it is trained.

A case is a row of `CASES`. Its first `HALF` steps use the learning rate `LR`, and the later ones half of it. The cases
use what the package documents, so that a redesign leaves this file unchanged.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from adopt_hf import ADOPT, ADOPTW, LayerwiseADOPT, keep_float32
from adopt_hf.layerwise import LayerwiseADOPTW
from tests.golden.flat import Rank
from tests.golden.tensors import digest, first_numbers, values

STEPS, HALF = 5, 3
LR = 2.0**-6
SHAPES = ((), (3,), (5, 7), (33, 130), (4100,))  # the last two are large enough for 8-bit moments
EVERY = ("reference", "foreach", "fused")
ROUNDED = ("reference", "fused")  # foreach does not round stochastically


@dataclass(frozen=True)
class Case:
    """One trajectory for each of some backends.

    Args:
        name: The key in the golden file.
        options: The arguments of the optimizer.
        optimizer: Its class.
        dtype: The dtype of parameters and gradients.
        kind: How the parameters are held: "plain", "layerwise", "flat RANK", "shard RANK", "replicate RANK".
        gradient: What changes the gradients of one step, given the step and the number of the tensor.
        prepare: What changes the parameters, or makes param groups of them, before there is an optimizer.
        before_step: What changes the optimizer before a step.
        backends: The backends that run it.
        shapes: Those of the tensors.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    optimizer: type[ADOPT] = ADOPT
    dtype: torch.dtype = torch.float32
    kind: str = "plain"
    gradient: Callable[[Tensor, int, int], Tensor | None] = lambda g, step, number: g
    prepare: Callable[[list[nn.Parameter]], Any] = lambda params: params
    before_step: Callable[[ADOPT, int], None] = lambda optimizer, step: None
    backends: Sequence[str] = EVERY
    shapes: Sequence[tuple[int, ...]] = SHAPES

    def gradients(self, step: int) -> list[Tensor | None]:
        """Return the gradients of one step."""
        made = (values(1000 * (step + 1) + i, s, self.dtype, wide=True) for i, s in enumerate(self.shapes))
        return [self.gradient(g, step, i) for i, g in enumerate(made)]

    def start(self) -> list[Tensor]:
        """Return the tensors that training starts from."""
        return [values(i, shape, self.dtype) for i, shape in enumerate(self.shapes)]

    def run(self, backend: str, at_half: "AtHalf | None" = None) -> list[str]:
        """Train, and return one row for each step.

        Args:
            backend: The backend of the optimizer.
            at_half: What happens to the run after `HALF` steps, such as to be saved and resumed.
        """
        kind, _, rank = self.kind.partition(" ")
        with HELD[kind](self, int(rank or 0)) as held:
            run = Run(held.optimizer_of(self.options | {"backend": backend, "lr": LR}), held.params, held)
            rows = []
            for step in range(STEPS):
                if step == HALF and at_half is not None:
                    run = at_half(run)
                rows.append(self._step(run, step))
            return rows

    def _step(self, run: "Run", step: int) -> str:
        for group in run.optimizer.param_groups:
            group["lr"] = LR if step < HALF else LR / 2
        self.before_step(run.optimizer, step)
        run.held.give(run.params, step)
        run.optimizer.step()
        run.optimizer.zero_grad()
        return row(run.optimizer, run.params)


@dataclass
class Held:
    """The parameters of a case, in the way in which the case holds them.

    Args:
        params: The parameters.
        optimizer_of: Makes an optimizer for them, of the given options.
        give: Gives gradients to the parameters before a step.
    """

    params: list[nn.Parameter]
    optimizer_of: Callable[[dict[str, Any]], ADOPT]
    give: Callable[[list[nn.Parameter], int], None]


class Run(NamedTuple):
    """A training run between two steps."""

    optimizer: ADOPT
    params: list[nn.Parameter]
    held: Held


AtHalf = Callable[[Run], Run]


def row(optimizer: torch.optim.Optimizer, params: Sequence[Tensor]) -> str:
    """Return digests of the parameters and of their states, and some numbers of the last parameter, in one line."""
    states = {f"{i} {name}": x for i, p in enumerate(params) for name, x in sorted(optimizer.state.get(p, {}).items())}
    shown = {"parameter": params[-1]} | {
        name: x for name, x in sorted(optimizer.state.get(params[-1], {}).items()) if isinstance(x, Tensor)
    }
    numbers = ", ".join(f"{name} {first_numbers(x)}" for name, x in shown.items())
    return f"parameters {digest({str(i): p for i, p in enumerate(params)})}, state {digest(states)}: {numbers}"


@contextmanager
def _plain(case: Case, rank: int) -> Iterator[Held]:
    params = [nn.Parameter(t) for t in case.start()]

    def give(params: list[nn.Parameter], step: int) -> None:
        for p, g in zip(params, case.gradients(step), strict=True):
            p.grad = g

    yield Held(params, lambda options: case.optimizer(case.prepare(params), **options), give)


@contextmanager
def _layerwise(case: Case, rank: int) -> Iterator[Held]:
    """The gradient of sum(p * g) is g itself."""
    params = [nn.Parameter(t) for t in case.start()]

    def give(params: list[nn.Parameter], step: int) -> None:
        pairs = [(p, g) for p, g in zip(params, case.gradients(step), strict=True) if g is not None]
        torch.stack([(p * g).sum() for p, g in pairs]).sum().backward()

    yield Held(params, lambda options: case.optimizer(case.prepare(params), **options), give)


@contextmanager
def _flat(case: Case, rank: int) -> Iterator[Held]:
    tensors = case.start()
    process = Rank([t.numel() for t in tensors], rank, world=2)
    flat = nn.Parameter(process.of(tensors))

    def optimizer_of(options: dict[str, Any]) -> ADOPT:
        optimizer = case.optimizer([flat], **options)
        process.describe(optimizer, flat)
        return optimizer

    def give(params: list[nn.Parameter], step: int) -> None:
        params[0].grad = process.receive(case.gradients(step), tensors)

    yield Held([flat], optimizer_of, give)


@contextmanager
def _one_of_two(placement: Any, case: Case, rank: int) -> Iterator[Held]:
    """DTensors on a mesh of two processes, of which this one is the only one that exists."""
    dist.init_process_group("fake", rank=rank, world_size=2, store=FakeStore())
    try:
        # DTensor's caches take equal meshes for one, and would hand out that of the other rank: the names differ.
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=(f"rank{rank}",))

        def distributed(t: Tensor) -> Tensor:
            return distribute_tensor(t, mesh, [placement], src_data_rank=None)

        params = [nn.Parameter(distributed(t)) for t in case.start()]

        def give(params: list[nn.Parameter], step: int) -> None:
            for p, g in zip(params, case.gradients(step), strict=True):
                p.grad = None if g is None else distributed(g)

        yield Held(params, lambda options: case.optimizer(case.prepare(params), **options), give)
    finally:
        dist.destroy_process_group()


HELD: dict[str, Callable[[Case, int], AbstractContextManager[Held]]] = {
    "plain": _plain,
    "layerwise": _layerwise,
    "flat": _flat,
    "shard": functools.partial(_one_of_two, Shard(0)),
    "replicate": functools.partial(_one_of_two, Replicate()),
}


# -- what the cases vary -----------------------------------------------------------------------------------------------


def _late(g: Tensor, step: int, number: int) -> Tensor | None:
    """Gradients that come late, are missing for a step, or are zero at first, as a whole or element by element."""
    if (number == 1 and step < 2) or (number == 2 and step == 3):
        return None
    if number == 3 and step < 2:
        return torch.zeros_like(g)
    if number == 4:
        g[step * 700 :: 3] = 0
    return g


def _not_finite(g: Tensor, step: int, number: int) -> Tensor:
    """An element that is inf, one that is NaN, one whose square overflows, and one whose square underflows."""
    if number == 4 and step == 2:
        g[:4] = torch.tensor([torch.inf, torch.nan, 1e30, 1e-30]).to(g.dtype)
    return g


def _two_groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": params[:-1]}, {"params": params[-1:], "weight_decay": 0.125, "betas": (0.5, 0.75)}]


def _marked(params: list[nn.Parameter]) -> list[nn.Parameter]:
    keep_float32(params[3:4])
    return params


def _names(params: list[nn.Parameter]) -> list[tuple[str, nn.Parameter]]:
    return [(f"layer{i}.weight", p) for i, p in enumerate(params)]


def _transposed(params: list[nn.Parameter]) -> list[nn.Parameter]:
    for p in params:
        if p.dim() == 2:
            p.data = p.data.t().contiguous().t()
    return params


def _other_numbers(optimizer: ADOPT, step: int) -> None:
    """Write into the groups as a schedule or a user may between two steps."""
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0625 * step
        group["betas"] = (0.75, 0.875) if step > 2 else (0.9, 0.99)


def _scaled(optimizer: ADOPT, step: int) -> None:
    """Write as a GradScaler does: a scale, and an overflow in one step."""
    optimizer.grad_scale = torch.tensor(8.0)  # type: ignore[attr-defined]
    optimizer.found_inf = torch.tensor(float(step == 3))  # type: ignore[attr-defined]


FORMATS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32, 32 bits": (torch.float32, {}),
    "float32, 16 bits": (torch.float32, {"state_bits": 16}),
    "float32, 8 bits": (torch.float32, {"state_bits": 8}),
    "bfloat16, 32 bits": (torch.bfloat16, {}),
    "bfloat16, 32 bits, rounded": (torch.bfloat16, {"bf16_stochastic_round": True}),
    "bfloat16, 16 bits": (torch.bfloat16, {"state_bits": 16}),
    "bfloat16, 16 bits, rounded": (torch.bfloat16, {"state_bits": 16, "bf16_stochastic_round": True}),
    "bfloat16, 8 bits": (torch.bfloat16, {"state_bits": 8}),
    "bfloat16, 8 bits, rounded": (torch.bfloat16, {"state_bits": 8, "bf16_stochastic_round": True}),
}
FEW = ("float32, 32 bits", "float32, 16 bits", "float32, 8 bits", "bfloat16, 16 bits, rounded")


def _backends(options: dict[str, Any]) -> Sequence[str]:
    return ROUNDED if options.get("state_bits", 32) < 32 or options.get("bf16_stochastic_round") else EVERY


def _formats(prefix: str, formats: Sequence[str], **more: Any) -> Iterator[Case]:
    for name in formats:
        dtype, options = FORMATS[name]
        merged = {**options, **more.get("options", {})}
        yield Case(f"{prefix}: {name}", **{**more, "options": merged, "dtype": dtype, "backends": _backends(merged)})


DECAY = {"weight_decay": 0.125}
EIGHT: dict[str, Any] = {"state_bits": 8}
ALL_OPTIONS: dict[str, Any] = {
    "betas": (0.75, 0.875),
    "eps": 1e-4,
    "weight_decay": 0.25,
    "decouple": True,
    "clip_exp": 0.5,
    "beta2_warmup": 0.75,
    "maximize": True,
    "seed": 3,
}

# Runs whose state after `HALF` steps stands in a file. The tensors are few, so that the files are small.
ONLY_REFERENCE: dict[str, Any] = {"backends": ("reference",), "shapes": SHAPES[1:3]}
WITH_LARGE: dict[str, Any] = {"backends": ("reference",), "shapes": SHAPES[2:4]}
SAVED: tuple[Case, ...] = (
    Case("saved, 32 bits", DECAY, ADOPTW, **ONLY_REFERENCE),
    Case("saved, 32 bits, large", **WITH_LARGE),
    Case("saved, 16 bits", DECAY | {"state_bits": 16}, ADOPTW, **ONLY_REFERENCE),
    Case("saved, 8 bits", DECAY | EIGHT, ADOPTW, **WITH_LARGE),
    Case(
        "saved, bfloat16 rounded",
        {"state_bits": 16, "bf16_stochastic_round": True},
        dtype=torch.bfloat16,
        **ONLY_REFERENCE,
    ),
    Case("saved, ADOPT with all options", ALL_OPTIONS, prepare=_two_groups, **ONLY_REFERENCE),
    Case("saved, names", EIGHT | {"block_size": 128}, prepare=_names, **WITH_LARGE),
    Case("saved, capturable", {"capturable": True}, ADOPTW, **ONLY_REFERENCE),
    Case("saved, one parameter", EIGHT, backends=("reference",), shapes=SHAPES[3:4]),
    Case("saved, flat", EIGHT, kind="flat 1", gradient=_late, backends=("reference",)),
    Case("saved, flat, 32 bits", kind="flat 1", gradient=_late, **ONLY_REFERENCE),
    Case("saved, layerwise", EIGHT, LayerwiseADOPT, torch.bfloat16, kind="layerwise", **WITH_LARGE),
)

CASES: tuple[Case, ...] = (
    *_formats("ADOPT", tuple(FORMATS)),
    *_formats("ADOPTW", FEW, optimizer=ADOPTW, options=DECAY),
    *_formats("late gradients", FEW, gradient=_late, options=DECAY | {"decouple": True}),
    *_formats("not finite", FEW, gradient=_not_finite),
    Case("coupled weight decay", DECAY),
    Case("decoupled weight decay", DECAY | {"decouple": True}),
    Case("beta2_warmup=0.75", {"beta2_warmup": 0.75}),
    Case("clip_exp=None", {"clip_exp": None}),
    Case("clip_exp=1", {"clip_exp": 1.0}),
    Case("maximize", {"maximize": True, **DECAY}),
    Case("small betas", {"betas": (0.25, 0.375)}),
    Case("betas of 0", {"betas": (0.0, 0.0)}, gradient=_late),
    Case("eps=0", {"eps": 0.0}, gradient=_late),
    Case("eps=0.5", {"eps": 0.5}),
    Case("float16", dtype=torch.float16),
    Case("float64", {"clip_exp": 1.0}, dtype=torch.float64),
    Case("complex64", dtype=torch.complex64),
    Case("param groups", prepare=_two_groups),
    Case("param groups, 8 bits", EIGHT, prepare=_two_groups, backends=ROUNDED),
    Case("keep_float32, 8 bits", EIGHT, prepare=_marked, backends=ROUNDED),
    Case("names, 8 bits", EIGHT, prepare=_names, backends=ROUNDED),
    Case("transposed memory", prepare=_transposed),
    Case("transposed memory, 8 bits", EIGHT, prepare=_transposed, backends=ROUNDED),
    Case("numbers change", before_step=_other_numbers),
    Case("numbers change, 8 bits", EIGHT, before_step=_other_numbers, backends=ROUNDED),
    Case("block_size=64", EIGHT | {"block_size": 64}, backends=ROUNDED),
    Case("block_size=2048", EIGHT | {"block_size": 2048}, backends=ROUNDED),
    Case("seed=7", EIGHT | {"seed": 7}, backends=ROUNDED),
    Case("seed=2**40", {"state_bits": 16, "seed": 2**40}, backends=ROUNDED),
    Case("one parameter", EIGHT, shapes=SHAPES[3:4], backends=ROUNDED),
    Case("one parameter with a name", EIGHT, shapes=SHAPES[3:4], prepare=_names, backends=ROUNDED),
    Case("capturable", {"capturable": True, **DECAY}, ADOPTW, gradient=_late, backends=("reference",)),
    Case("capturable, scaled", {"capturable": True}, before_step=_scaled, backends=("reference",)),
    *_formats("layerwise", FEW, kind="layerwise", optimizer=LayerwiseADOPT),
    Case("layerwise ADOPTW, late gradients", DECAY, LayerwiseADOPTW, kind="layerwise", gradient=_late),
    *(
        case
        for rank in (0, 1)
        for case in (
            *_formats(f"flat, rank {rank} of 2", FEW, kind=f"flat {rank}", options=DECAY, gradient=_late),
            *_formats(f"sharded, rank {rank} of 2", FEW, kind=f"shard {rank}", shapes=SHAPES[1:]),
        )
    ),
    *_formats("replicated", FEW, kind="replicate 1"),
    *SAVED,
)
