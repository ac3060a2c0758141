"""bitsandbytes' 8-bit moments: read as the package reads them, and refused where the codes do not belong together."""

from typing import Any

import pytest
import torch
from torch import nn

from adopt_hf import ADOPTW
from adopt_hf.state import adamw, bitsandbytes


def codes(**changes: Any) -> dict[str, Any]:
    """A state of 600 elements in three blocks, wrapped as the package saves it."""
    generator = torch.Generator().manual_seed(0)
    inside: dict[str, Any] = {}
    for number, signed in ((1, True), (2, False)):
        inside[f"state{number}"] = torch.randint(256, (20, 30), generator=generator, dtype=torch.uint8)
        inside[f"qmap{number}"] = torch.linspace(-1 if signed else 0, 1, 256)
        inside[f"absmax{number}"] = torch.tensor([1.0, 10.0, 0.0])
    return {"step": 3, bitsandbytes.WRAPPED: inside | changes}


def test_codes_times_the_scale_of_their_block() -> None:
    state = codes()
    found = bitsandbytes.as_floats(state, "it")
    inside = state[bitsandbytes.WRAPPED]
    for number, name in ((1, "exp_avg"), (2, "exp_avg_sq")):
        flat = inside[f"state{number}"].reshape(-1)
        wanted = [inside[f"qmap{number}"][int(c)] * inside[f"absmax{number}"][i // 256] for i, c in enumerate(flat)]
        assert torch.equal(found[name].reshape(-1), torch.stack(wanted))
    assert found.keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert bitsandbytes.as_floats({"step": 3, **inside}, "it").keys() == found.keys()  # before the wrapping


def test_small_tensors_are_in_floating_point() -> None:
    state = {"step": 3, bitsandbytes.WRAPPED: {"state1": torch.ones(4), "state2": torch.full((4,), 2.0)}}
    found = bitsandbytes.as_floats(state, "it")
    assert (found["exp_avg"].sum(), found["exp_avg_sq"].sum()) == (4, 8)
    torchs = {"step": torch.tensor(1.0), "exp_avg": torch.ones(1), "exp_avg_sq": torch.ones(1)}
    assert bitsandbytes.as_floats(torchs, "it") == torchs


@pytest.mark.parametrize(
    "changes",
    [
        {"qmap1": None},
        {"qmap2": torch.ones(16)},
        {"absmax1": torch.ones(2)},
        {"absmax1": torch.ones(3).to_sparse()},
        {"qmap2": torch.ones(256, device="meta")},
        {"state2": torch.ones(20, 30, dtype=torch.int16)},
    ],
    ids=str,
)
def test_codes_that_do_not_belong_together(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="it has 8-bit moments of bitsandbytes that are not a code for each element"):
        bitsandbytes.as_floats(codes(**changes), "it")


def test_what_is_no_dict_of_tensors_is_named() -> None:
    with pytest.raises(ValueError, match=f"it has {bitsandbytes.WRAPPED} of type int, which must be a dict"):
        bitsandbytes.as_floats({"step": 3, bitsandbytes.WRAPPED: 3}, "it")
    group = {"betas": (0.9, 0.999), "eps": 1e-8}
    with pytest.raises(ValueError, match="it has exp_avg of type list, which must be a plain tensor"):
        adamw.adopts_state(codes(state1=[1]), group, group, "it")


def test_one_moment_is_another_optimizer() -> None:
    """Lion, RMSprop and others keep state1 only."""
    with pytest.raises(ValueError, match="it has no state2: it is not the state of bitsandbytes' Adam or AdamW"):
        bitsandbytes.as_floats({"step": 3, "state1": torch.ones(4)}, "it")


def test_a_real_state() -> None:
    """Against torch's AdamW in 32 bits, to the 8 bits' own error; and ADOPT goes on with it."""
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    runs = {}
    for cls, options in ((bnb.optim.AdamW, {"optim_bits": 8}), (torch.optim.AdamW, {})):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(80, 80), nn.Linear(80, 4))
        optimizer = cls(model.parameters(), lr=1e-5, weight_decay=0.01, **options)
        for seed in range(5):
            x = torch.randn(5, 80, generator=torch.Generator().manual_seed(seed))
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        saved = optimizer.state_dict()
        (group,) = saved["param_groups"]
        adamw.check_groups([group])
        new = adamw.adopts_group(group, {})
        state = {key: adamw.adopts_state(entry, group, new, "it") for key, entry in saved["state"].items()}
        adopt = ADOPTW(model.parameters())
        adopt.load_state_dict({"state": state, "param_groups": [new]})
        adopt.step()
        runs[cls] = list(state.values()), {name: value for name, value in new.items() if name != "params"}
    (few, few_group), (full, full_group) = runs.values()
    assert few_group == full_group
    assert few[0]["step"] == full[0]["step"] == 5
    for a, b in zip(few, full, strict=True):
        rms = b["exp_avg_sq"].mean().sqrt()
        assert (a["exp_avg_sq"].sqrt() - b["exp_avg_sq"].sqrt()).abs().mean() < 0.05 * rms
        seen = a["exp_avg_sq"] > 0
        assert (a["exp_avg"] - b["exp_avg"])[seen].abs().mean() < 0.05
