"""Whatever a file holds: it is converted, or refused by a ValueError that names what is wrong."""

import json
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adopt_hf.commands.convert import conversion
from adopt_hf.commands.convert.change import Change, given_options
from adopt_hf.state import adamw

NUMBERS = st.one_of(st.floats(), st.integers(-3, 3), st.booleans(), st.none(), st.text(max_size=3))
TENSORS = st.sampled_from(
    [
        torch.tensor(0.5),
        torch.tensor(True),
        torch.ones(2),
        torch.empty(0),
        torch.ones(2, dtype=torch.int64),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2, device="meta"),
        torch.eye(2).to_sparse(),
        torch.tensor(0.9, requires_grad=True),
    ]
)
JSON = st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))
ANY = st.one_of(NUMBERS, TENSORS, st.lists(st.one_of(NUMBERS, TENSORS), max_size=3), st.dictionaries(NUMBERS, NUMBERS))
OPTIONS = [*torch.optim.AdamW([torch.ones(1)]).param_groups[0], "bias_correction", "caution", "step", "clip_exp"]
OPTIONS.remove("params")


def is_refused_or(convert: Any) -> Any:
    """Return what `convert` returns, or None for a ValueError; another error fails the test."""
    try:
        return convert()
    except ValueError:
        return None


@settings(deadline=None, max_examples=200)
@given(
    options=st.dictionaries(st.sampled_from(OPTIONS), ANY, max_size=3),
    entries=st.dictionaries(st.sampled_from(["step", "exp_avg", "exp_avg_sq", "state1", "qmap1"]), ANY, max_size=2),
    to=st.sampled_from(["adopt", "adamw"]),
)
def test_any_groups_and_states(options: dict[str, Any], entries: dict[str, Any], to: str) -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([p])
    p.grad = torch.ones(2)
    optimizer.step()
    saved: Any = optimizer.state_dict()
    if to == "adamw":
        saved = Change("adopt", {}, []).state_dict(saved, lambda size: None)
    saved["param_groups"][0] |= options
    saved["state"][0] |= entries
    found = is_refused_or(lambda: Change(to, {}, []).state_dict(saved, lambda size: None))
    if found is not None:
        assert set(found["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
        assert all(t.isfinite().all() for t in found["state"][0].values())
        other = torch.optim.AdamW([p]) if to == "adamw" else None
        if other is not None:
            other.load_state_dict(found)


@settings(deadline=None, max_examples=200)
@given(text=st.text(alphabet="abeltps12=,.()_ '\"-[]{}\\none", max_size=20), to=st.sampled_from(["adopt", "adamw"]))
def test_any_text_of_options(text: str, to: str) -> None:
    found = is_refused_or(lambda: given_options(to, text))
    assert found is None or all(isinstance(name, str) for name in found)


@settings(deadline=None, max_examples=100)
@given(groups=JSON, to=JSON, text=st.none() | st.text(max_size=20))
def test_any_record(groups: Any, to: Any, text: str | None, tmp_path_factory: Any) -> None:
    """A record of an earlier conversion, or of another program, is used, left out, or refused."""
    folder: Path = tmp_path_factory.mktemp("record")
    record = json.dumps({"from": "AdamW", "groups": groups, "to": to})
    (folder / conversion.RECORD).write_text(record if text is None else text, encoding="utf-8", errors="replace")
    before = is_refused_or(lambda: conversion._before(folder, "adamw"))
    group = adamw.adopts_group(torch.optim.AdamW([torch.ones(1)]).param_groups[0], {}) | {"params": [0]}
    new = is_refused_or(lambda: Change("adamw", {}, before or []).groups([group]))
    assert new is None or 0 <= new[0]["betas"][1] < 1
