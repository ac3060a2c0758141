"""The figures of a Monitor are those computed from whole tensors, and observing changes no bit of the training."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adopt_hf
from adopt_hf.backends import capture, reference
from adopt_hf.state import quantization
from adopt_hf.state.quantization import Quantized

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no clipping": {"clip_exp": None},
    "L2": {"decouple": False, "weight_decay": 0.5},
    "decoupled decay": {"decouple": True, "weight_decay": 0.5},
    "maximize": {"maximize": True},
    "16 bits": {"state_bits": 16},
    "8 bits": {"state_bits": 8, "block_size": 64},
    "reference": {"backend": "reference"},
    "foreach": {"backend": "foreach"},
    "capturable": {"capturable": True},
}


class Model(nn.Module):
    """Tensors with and without 8-bit moments, rows that are seen late, one without a gradient, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(70, 80)
        self.body = nn.Sequential(nn.Linear(80, 60), nn.Tanh(), nn.Linear(60, 3))
        self.unused = nn.Linear(5, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.body(self.rows(tokens))


def made(cls: Callable[..., Any] = adopt_hf.ADOPTW, **options: Any) -> tuple[Model, Any]:
    torch.manual_seed(0)
    model = Model()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == 2 and p.requires_grad]},
        {"params": [p for p in model.parameters() if p.dim() == 1 and p.requires_grad], "weight_decay": 0.0},
    ]
    return model, cls(groups, **{"lr": 1e-2, **options})


def backward(model: Model, i: int) -> None:
    tokens = torch.randint(10 * (i + 1), (16,), generator=torch.Generator().manual_seed(i))
    (model(tokens).square().mean() * (1 + 0.7 * i)).backward()


def moments(optimizer: Any, p: Tensor, group: dict[str, Any]) -> tuple[Tensor, Tensor]:
    state = optimizer.state.get(p, {})
    if not state:
        return torch.zeros_like(p, dtype=torch.float64), torch.zeros_like(p, dtype=torch.float64)
    if "scales" in state:
        codes = Quantized(state["exp_avg_codes"], state["exp_avg_sq_codes"], state["scales"])
        m, v = quantization.dequantize(codes, group["block_size"])
        return m.double(), v.double()
    return state["exp_avg"].double(), state["exp_avg_sq"].double()


class Whole:
    """The figures of the step that comes next, from whole tensors and in float64."""

    def __init__(self, model: Model, optimizer: Any) -> None:
        names = {p: name for name, p in model.named_parameters()}
        self.sums: dict[str, list[float]] = {}
        self.of_layer: dict[str, tuple[float, float]] = {}
        self.undecided = 0  # elements whose ratio is the bound but for rounding
        for index, group in enumerate(optimizer.param_groups):
            for p in group["params"]:
                m, v = moments(optimizer, p, group)
                t = float(optimizer.state.get(p, {}).get("step", 0))
                theta, grad = p.detach().double(), p.grad
                takes_part = grad is not None and (t > 0 or bool(grad.any()))
                counts = [0.0, 0.0, 0.0, 0.0]
                if takes_part:
                    assert grad is not None
                    g = grad.double() * (-1 if group["maximize"] else 1)
                    if not group["decouple"]:
                        g = g + group["weight_decay"] * theta
                    warm = 1 - (t + 1) ** -group["beta2_warmup"] if group["beta2_warmup"] else 1.0
                    beta1, beta2 = group["betas"][0], min(group["betas"][1], warm)
                    clip = math.inf if group["clip_exp"] is None else t ** group["clip_exp"]
                    ratio = g / v.sqrt().clamp(min=group["eps"])
                    self.undecided += int(((ratio.abs() - clip).abs() < 1e-6 * clip).sum())
                    u = torch.where(v == 0, 0.0, ratio.clamp(-clip, clip))
                    counts = [
                        p.numel(),
                        float(((ratio.abs() > clip) & (v != 0)).sum()),
                        float((group["lr"] * (m + (1 - beta1) * (u - m))).square().sum()),
                        float(theta.square().sum()),
                    ]
                    v = torch.where(v == 0, g * g, beta2 * v + (1 - beta2) * g * g)
                finite = v.isfinite()
                counts += [p.numel(), float(v[finite].sum()), float((v == 0).sum()), float((~finite).sum())]
                for key in ("", f"group_{index}/"):
                    self.sums[key] = [a + b for a, b in zip(self.sums.get(key, [0.0] * 8), counts, strict=True)]
                layer = names[p].rpartition(".")[0]
                old = self.of_layer.get(layer, (0.0, 0.0))
                self.of_layer[layer] = old[0] + counts[1], old[1] + counts[0]

    def figures(self) -> dict[str, float]:
        found = {}
        for key, (updated, clipped, updates, weights, elements, v, unobserved, nonfinite) in self.sums.items():
            found |= {
                f"adopt/{key}clipped": clipped / updated if updated else 0.0,
                f"adopt/{key}update_to_weight": math.sqrt(updates / weights) if weights else 0.0,
                f"adopt/{key}rms_sqrt_v": math.sqrt(v / elements),
                f"adopt/{key}unobserved": unobserved / elements,
                f"adopt/{key}nonfinite_v": nonfinite,
            }
        return found

    def layers(self) -> dict[str, float]:
        return {f"adopt/clipped/{name}": a / b if b else 0.0 for name, (a, b) in self.of_layer.items()}


def check(found: dict[str, float], whole: Whole) -> None:
    wanted = whole.figures()
    updated = {f"adopt/{key}clipped": sums[0] for key, sums in whole.sums.items()}
    for name, value in wanted.items():
        undecided = whole.undecided / updated[name] if updated.get(name) else 0.0
        assert found[name] == pytest.approx(value, rel=2e-5, abs=1e-12 + undecided), name
    layers = {name: value for name, value in found.items() if name not in wanted}
    assert len(layers) == 4  # there are no more
    for name, value in layers.items():
        assert value == pytest.approx(whole.layers()[name], rel=1e-9) or whole.undecided, name


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_figures_are_those_of_whole_tensors(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "PIECE", 1024)
    model, optimizer = made(**options)
    monitor = adopt_hf.Monitor(optimizer, model, every=1)
    shares = []
    for i in range(6):
        optimizer.zero_grad()
        backward(model, i)
        whole = Whole(model, optimizer)
        optimizer.step()
        found = monitor.figures()
        check(found, whole)
        shares.append(found["adopt/clipped"])
    assert (max(shares) > 0.1) == (optimizer.param_groups[0]["clip_exp"] is not None)
    assert 0 < found["adopt/unobserved"] < 1
    assert monitor.figures() == {}


def test_layerwise_updates_have_the_same_figures() -> None:
    model, optimizer = made(adopt_hf.LayerwiseADOPTW)
    monitor = adopt_hf.Monitor(optimizer, model, every=2)
    plain_model, plain = made()
    plain_monitor = adopt_hf.Monitor(plain, plain_model, every=2)
    seen = []
    for i in range(6):
        for a_model, an_optimizer in ((model, optimizer), (plain_model, plain)):
            backward(a_model, i)
            an_optimizer.step()
            an_optimizer.zero_grad()
        found, wanted = monitor.figures(), plain_monitor.figures()
        assert found == pytest.approx(wanted, rel=1e-6)
        seen.append(bool(found))
    assert seen == [False, True] * 3
    optimizer.release()


@pytest.mark.parametrize("cls", [adopt_hf.ADOPTW, adopt_hf.LayerwiseADOPTW])
@pytest.mark.parametrize("bits", [32, 8])
def test_observing_changes_no_bit(cls: Any, bits: int) -> None:
    after = []
    for every in (None, 1):
        model, optimizer = made(cls, state_bits=bits)
        if every:
            adopt_hf.Monitor(optimizer, model, every=every)
        for i in range(4):
            backward(model, i)
            optimizer.step()
            optimizer.zero_grad()
        after.append([p.detach().clone() for p in model.parameters()])
    assert all(map(torch.equal, *after))


def test_a_load_leaves_the_figures_of_the_step_before() -> None:
    found = []
    for loads in (False, True):
        model, optimizer = made()
        empty = copy.deepcopy(optimizer.state_dict())
        monitor = adopt_hf.Monitor(optimizer, model, every=1)
        for i in range(2):
            optimizer.zero_grad()
            backward(model, i)
            optimizer.step()
        if loads:
            optimizer.load_state_dict(empty)
        found.append(monitor.figures())
    assert found[0] == found[1]
    assert found[0]["adopt/update_to_weight"] > 0


def test_numbers_that_are_not_finite_are_counted() -> None:
    model, optimizer = made()
    monitor = adopt_hf.Monitor(optimizer, model, every=1)
    for i in range(2):
        optimizer.zero_grad()
        backward(model, i)
        optimizer.step()
        assert monitor.figures()["adopt/nonfinite_v"] == 0
    backward(model, 2)
    assert model.body[0].weight.grad is not None
    model.body[0].weight.grad[0, :3] = math.inf
    optimizer.step()
    found = monitor.figures()
    assert (found["adopt/nonfinite_v"], found["adopt/group_1/nonfinite_v"]) == (3, 0)
    assert math.isfinite(found["adopt/rms_sqrt_v"])


def test_a_step_that_a_scaler_skips_updates_nothing() -> None:
    model, optimizer = made()
    monitor = adopt_hf.Monitor(optimizer, model, every=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for i, factor in enumerate((1.0, 1.0, math.inf)):
        optimizer.zero_grad()
        tokens = torch.randint(70, (16,), generator=torch.Generator().manual_seed(i))
        scaler.scale(model(tokens).square().mean() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        found = monitor.figures()
        assert bool(found) == (factor == 1)


def test_a_compiled_step_is_observed() -> None:
    torch.compiler.reset()
    model, optimizer = made()
    monitor = adopt_hf.Monitor(optimizer, model, every=1)
    step = torch.compile(optimizer.step, backend="eager")
    for i in range(3):
        optimizer.zero_grad()
        backward(model, i)
        whole = Whole(model, optimizer)
        step()
        check(monitor.figures(), whole)


def test_names_come_from_the_model_the_optimizer_or_numbers() -> None:
    layer = nn.Linear(3, 3)

    def layers(params: Any, model: Any = None) -> set[str]:
        optimizer = adopt_hf.ADOPT(params)
        monitor = adopt_hf.Monitor(optimizer, model, every=1)
        layer(torch.ones(3)).sum().backward()
        optimizer.step()
        return {name.removeprefix("adopt/clipped/") for name in monitor.figures() if name.count("/") == 2}

    assert layers(layer.parameters(), nn.ModuleDict({"module": nn.ModuleDict({"here": layer})})) == {"here"}
    assert layers([(f"there.{name}", p) for name, p in layer.named_parameters()]) == {"there"}
    assert layers(layer.parameters()) == {"parameter 0", "parameter 1"}


def test_a_monitor_that_is_detached_or_not_due_sees_nothing() -> None:
    model, optimizer = made()
    monitor = adopt_hf.Monitor(optimizer, model)
    for due, wanted in ((False, False), (True, True), (False, False)):
        monitor.is_due = due
        backward(model, 0)
        optimizer.step()
        assert bool(monitor.figures()) == wanted
    monitor.is_due = True
    monitor.detach()
    backward(model, 0)
    optimizer.step()
    assert monitor.figures() == {}


def test_a_model_on_several_devices_has_a_table_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """As device_map="auto" spreads a model: tables of two devices cannot be joined."""
    layer = nn.Linear(3, 3)
    monitor = adopt_hf.Monitor(adopt_hf.ADOPT(layer.parameters()), layer)
    original = adopt_hf.monitor.counted

    def counted(p: Tensor, *args: Any) -> Tensor:
        return original(p, *args).to("meta" if p is layer.bias else "cpu")

    monkeypatch.setattr(adopt_hf.monitor, "counted", counted)
    monitor._look(monitor._optimizer.param_groups, 0)
    assert sorted(table.device.type for table in monitor._tables) == ["cpu", "meta"]
    assert [row.name for row in monitor._rows] == ["weight", "bias"]


def test_copies_have_no_monitor() -> None:
    model, optimizer = made()
    adopt_hf.Monitor(optimizer, model)
    assert copy.deepcopy(optimizer).monitor is None
    assert pickle.loads(pickle.dumps(optimizer)).monitor is None


def test_a_step_that_a_graph_captures_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer = made(capturable=True)
    monitor = adopt_hf.Monitor(optimizer, model, every=1)
    backward(model, 0)
    optimizer.step()
    assert monitor.figures()
    monkeypatch.setattr(capture, "is_capturing", lambda: True)
    optimizer.step()
    assert monitor.figures() == {}
