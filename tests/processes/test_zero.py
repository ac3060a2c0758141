"""ADOPT inside an engine of DeepSpeed, on two processes: see zero_job.py for what each scenario does.

- A step agrees once on the gradients that came, on the host. It looks at values on the device only for tensors whose
  first gradient has just come; a trainable tensor that never gets one costs nothing.
- What an overflow has skipped is forgotten, and experts count over the processes that share them.
"""

import json
from typing import Any

import pytest

from tests.processes.conftest import torchrun

pytestmark = pytest.mark.distributed

BEGUN = 5  # from this step on every tensor that will ever get a gradient has begun


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of each of the two processes."""
    folder = tmp_path_factory.mktemp("zero")
    torchrun(2, "zero_job.py", folder, timeout=550, forked=True)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_trained_together(found: list[dict[str, Any]]) -> None:
    assert [rank["world_size"] for rank in found] == [2, 2]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("offload", ["", "offloaded, "])
def test_a_step_agrees_once_and_does_not_wait(stage: int, offload: str, found: list[dict[str, Any]]) -> None:
    if offload and stage == 0:
        pytest.skip("stage 0 does not offload")
    for rank in (r[f"counted, {offload}stage {stage}"] for r in found):
        assert rank["difference"] < 1e-6
        assert rank["calls"] == {0: 1, 1: 2, 2: 2, 3: 3}[stage]  # or one agreement a call would do
        assert rank["devices"] == ["cpu"]
        steps = list(zip(rank["reduced"], rank["fetched"], strict=True))
        assert steps[BEGUN:] == [(1, 0)] * (len(steps) - BEGUN)
        assert steps[3] == (1, 0)  # the expert has not begun then, and gets no gradient
        assert stage == 0 or steps[0] > (1, 0)  # or nothing was counted
        assert rank["unused has state"] is False


def test_where_the_default_group_has_no_cpu_tensors_a_group_of_gloo_is_made_once(found: list[dict[str, Any]]) -> None:
    for rank in (r["apart"] for r in found):
        assert rank["made"] == [[0, 1]]  # for two engines
        assert rank["only there"] is True
        assert rank["difference"] < 1e-6


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("offload", ["", "offloaded, "])
def test_a_gradient_of_a_skipped_step_has_not_come(stage: int, offload: str, found: list[dict[str, Any]]) -> None:
    """Nor is its inf still there in the next step, which would skip that one, too."""
    for rank in (r[f"overflow, {offload}stage {stage}"] for r in found):
        assert rank["skipped"] == 1
        assert {n: t for n, t in rank["counts"].items() if n.endswith("weight")} == {
            "hidden.weight": 6,
            "expert.weight": 1,
        }


def test_where_hooks_see_nothing_the_values_tell_and_a_warning_says_what_it_costs(found: list[dict[str, Any]]) -> None:
    for rank in (r["hidden, stage 2"] for r in found):
        assert rank["difference"] < 1e-6
        assert len(rank["messages"]) == 1
        assert "waits for the device" in rank["messages"][0]


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("how", ["experts", "experts by name"])
def test_experts_that_one_process_has(how: str, stage: int, found: list[dict[str, Any]]) -> None:
    for rank, steps in zip((r[f"{how}, stage {stage}"] for r in found), (20, 15), strict=True):
        assert rank["counts"] == {"weight": steps, "bias": steps}
        assert rank["expert"] < 1e-6
        assert rank["outside"] < 1e-6


WEIGHTS = "load_checkpoint(..., load_optimizer_states=False)"
TAKEN = {
    "AdamW takes ADOPT": ["the state in the checkpoint is that of ADOPT", "the optimizer is AdamW", WEIGHTS],
    "ADOPT takes AdamW": ["the state of Adam", "start ADOPT without", WEIGHTS],
    "ADOPT takes FusedAdam": ["the state of Adam", "start ADOPT without", WEIGHTS],
    "ADOPT takes the former AdamW": ["is not ADOPT's", "correct_bias", "start ADOPT without", WEIGHTS],
}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("name", TAKEN)
def test_the_state_of_another_optimizer_is_refused_before_anything_is_loaded(
    name: str, stage: int, found: list[dict[str, Any]]
) -> None:
    """And the way that the error names works."""
    for rank in (r[f"{name}, stage {stage}"] for r in found):
        assert [words for words in TAKEN[name] if words not in rank["text"]] == [], rank["text"]
        assert rank["unchanged"] == 0
        assert rank["weights only"] == 0


@pytest.mark.parametrize("stage", [1, 2])
def test_states_that_are_moved_away_come_back(stage: int, found: list[dict[str, Any]]) -> None:
    assert max(rank[f"moved, stage {stage}"]["difference"] for rank in found) < 1e-6


def test_stage_3_moves_the_states_of_fused_adam_only(found: list[dict[str, Any]]) -> None:
    for rank in found:
        wanted = ["ValueError", "ADOPT", "optim_states and hp_params", "FusedAdam", "`include`"]
        assert [words for words in wanted if words not in rank["error: moved, stage 3"]] == []


def test_the_best_model_is_loaded_where_the_optimizer_is_on_nvme(found: list[dict[str, Any]]) -> None:
    for rank in (r["best, on NVMe"] for r in found):
        assert rank["best"].endswith("checkpoint-1")
        assert rank["from the best"] == 0
        assert rank["from the last"] > 1e-3


def test_or_refused_before_training(found: list[dict[str, Any]]) -> None:
    for rank in found:
        wanted = ["ValueError", "load_best_model_at_end", '"stage3_gather_16bit_weights_on_model_save": true']
        assert [words for words in wanted if words not in rank["error: best, on NVMe, without weights"]] == []


@pytest.mark.parametrize("bits", [8, 16])
def test_few_bits_on_nvme_are_refused(bits: int, found: list[dict[str, Any]]) -> None:
    for rank in found:
        wanted = ["ValueError", f"state_bits={bits}", "NVMe", "state_bits=32"]
        assert [words for words in wanted if words not in rank[f"error: {bits} bits on NVMe"]] == []
