"""Whole runs of the optimizer: against the definition, resumed, on several streams, captured, with a GradScaler."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import Parameter

from adopt_hf import ADOPT, LayerwiseADOPT
from adopt_hf.algorithm import step_scalars
from adopt_hf.backends.bucket import Bucket
from experiments.gpu.check import Check
from experiments.gpu.kernels import REFERENCE, TRITON
from experiments.gpu.problems import apart, cloned, columns, equal, group, loss, model, train, worst

OPTIONS: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.1, "decouple": True}
STEPS = 8


def optimizer(check: Check) -> None:
    """Eight steps with a late gradient, whole and resumed, in every form of the state; layerwise as well."""
    kinds: list[dict[str, Any]] = [
        {},
        {"capturable": True},
        {"state_bits": 8},
        {"state_bits": 16, "bf16_stochastic_round": True},
    ]
    for kind in kinds:
        if check.skipped_for_time(f"8 steps, {kind}"):
            return
        dtype = torch.bfloat16 if "bf16_stochastic_round" in kind else torch.float32
        runs = {}
        for backend in ("fused", "reference"):
            runs[backend] = model(check, dtype)
            train(ADOPT(runs[backend], **OPTIONS, backend=backend, **kind), runs[backend], range(STEPS))
        # The power in c_t is taken on the device where the step can be captured, and where roots are not torch's own.
        exact = not check.dry and "capturable" not in kind
        distance = apart(runs["fused"], runs["reference"])
        ok = distance == 0 if exact else distance < (2**-6 if dtype == torch.bfloat16 else 1e-5)
        check.say(ok, f"8 steps, fused is the definition, {kind}", f"{distance:.1e}")
        params = model(check, dtype)
        first = ADOPT(params, **OPTIONS, backend="fused", **kind)
        train(first, params, range(STEPS // 2))
        second = ADOPT(params, **OPTIONS, backend="fused", **kind)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        train(second, params, range(STEPS // 2, STEPS))
        check.say(equal(params, runs["fused"]), f"a resumed run is the uninterrupted one to the bit, {kind}")
    ends = []
    for make in (LayerwiseADOPT, ADOPT):
        params = model(check)
        train(make(params, **OPTIONS, backend="fused"), params, range(STEPS))
        ends.append(params)
    check.say(equal(*ends), "LayerwiseADOPT is ADOPT to the bit")


def streams(check: Check) -> None:
    """The host runs ahead, streams take turns, and a step never waits for the device."""
    if check.skipped_when_dry():
        return
    scalars = step_scalars(group(), 7)
    _queued(check, scalars)
    side, main = torch.cuda.Stream(), torch.cuda.default_stream()
    those = columns(check.device, [(40000,)])
    want = cloned(those)
    for i in range(20):
        turn = side if i % 2 else main
        turn.wait_stream(main)
        turn.wait_stream(side)
        with torch.cuda.stream(turn):
            TRITON.step([Bucket(*those, scalars)])
        main.wait_stream(turn)
    for _ in range(20):
        REFERENCE.step([Bucket(*want, scalars)])
    check.say(worst(those, want) == 0, "20 steps on two streams in turns")
    for backend in ("fused", "foreach"):
        _never_waits(check, backend)


def _queued(check: Check, scalars: Any) -> None:
    """Steps behind a busy device, with gradients that are freed at once: tables are not overwritten in flight."""
    shapes: list[tuple[int, ...]] = [(40000,), (7,)]
    those = columns(check.device, shapes)
    want = cloned(those)
    grads = [columns(check.device, shapes, seed=seed)[1] for seed in range(40)]
    TRITON.step([Bucket(*those, scalars)])
    check.synchronize()
    busy = torch.randn(8192, 8192, device=check.device)
    for _ in range(20):
        busy = busy @ busy * 1e-4
    for g in grads:
        those[1] = [t.clone() for t in g]
        TRITON.step([Bucket(*those, scalars)])
    for g in [want[1], *grads]:
        want[1] = g
        REFERENCE.step([Bucket(*want, scalars)])
    check.say(worst(those, want) == 0, "40 steps queued behind 20 large products")


def _never_waits(check: Check, backend: str) -> None:
    params = model(check)
    made = ADOPT(params, backend=backend)
    grads = [torch.randn_like(p) for p in params]

    def step() -> None:
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        made.step()

    for _ in range(4):
        step()
    check.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        check.say(False, f"{backend}: a step does not wait for the device", error)
    else:
        check.say(True, f"{backend}: a step does not wait for the device")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def graphs(check: Check) -> None:
    """A captured step replayed is the eager one; capture without capturable=True is refused."""
    if check.skipped_when_dry():
        return
    for backend in ("fused", "reference"):
        _replayed(check, backend)
    params = model(check)
    made = ADOPT(params)
    train(made, params, range(4))
    for p in params:
        p.grad = torch.zeros_like(p)
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            made.step()
    except RuntimeError as error:
        check.say("capturable" in str(error), "capture without capturable=True is refused", str(error)[:120])
    else:
        check.say(False, "capture without capturable=True is refused")


def _replayed(check: Check, backend: str) -> None:
    def make(params: Sequence[Parameter], name: str) -> ADOPT:
        lr = torch.tensor(0.05, device=check.device)
        return ADOPT(params, lr=lr, weight_decay=0.1, decouple=True, capturable=True, backend=name)

    params, others = model(check), model(check)
    captured, eager = make(params, backend), make(others, "reference")
    x = torch.zeros((), device=check.device)

    def step(of: ADOPT, those: Sequence[Parameter]) -> None:
        of.zero_grad(set_to_none=True)
        loss(those, x).backward()
        of.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for i in range(2):
            x.fill_(i)
            step(captured, params)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(captured, params)
    junk = [torch.randn(1 << 20).pin_memory() for _ in range(8)]  # would take a pinned block that was freed too early
    del junk
    replays = 28
    for i in range(2, 2 + replays):
        x.fill_(i % 7)
        captured.param_groups[0]["lr"].mul_(0.97)
        graph.replay()
    for i in range(2 + replays):
        x.fill_(i if i < 2 else i % 7)
        if i >= 2:
            eager.param_groups[0]["lr"].mul_(0.97)
        step(eager, others)
    distance, counts = apart(params, others), [int(captured.state[p]["step"]) for p in params]
    check.say(distance < 1e-6, f"{replays} replays are eager steps, {backend}", f"{distance:.1e}, steps {counts}")


def scaler(check: Check) -> None:
    """A GradScaler with two overflows, one of them in the first step: it does not use up the first observation."""
    for capturable in (False, True):
        ends, counts = {}, []
        for backend in ("fused", "reference"):
            params = model(check)
            made = ADOPT(params, lr=0.05, backend=backend, capturable=capturable)
            scale = torch.amp.GradScaler(check.device.type, init_scale=2.0**10, growth_interval=2)
            for i in range(7):
                made.zero_grad()
                scale.scale(loss(params, torch.tensor(float(i), device=check.device))).backward()
                if i in (0, 4):
                    params[2].grad.view(-1)[3] = math.inf
                scale.step(made)
                scale.update()
            ends[backend] = params
            counts.append([int(made.state[p]["step"]) for p in params])
        distance = apart(ends["fused"], ends["reference"])
        ok = distance < 1e-5 and counts == [[5, 3, 5, 5]] * 2
        check.say(ok, f"two overflows, capturable={capturable}", f"{distance:.1e}, steps {counts[0]}")
