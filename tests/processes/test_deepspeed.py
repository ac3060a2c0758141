"""DeepSpeed as its users write it, on two processes: see deepspeed_job.py for what each scenario does.

- By name in the config, as an object or a function, offloaded without a flag, ADOPT is what trains.
- The weights are those of one process, also of tensors whose gradients come late or only now and then, in every stage;
  DeepSpeed itself fills in zeros there, or an old gradient.
- "auto" and what is left out mean ADOPT's own numbers; a contradiction or another optimizer is an error.
"""

import json
from typing import Any

import pytest

from tests.processes.conftest import torchrun

pytestmark = pytest.mark.distributed

SAME_WEIGHTS = [
    *(f"by name, stage {stage}" for stage in (0, 1, 2, 3)),
    "by name in a file",
    *(f"by object, stage {stage}" for stage in (0, 1, 2, 3)),
    *(f"offloaded, stage {stage}" for stage in (1, 2, 3)),
    "all offloaded, stage 3",
    "by function",
    "by function, offloaded",
    "by base64",
    "by an early import",
    "round robin, stage 1",
    "round robin, stage 2",
    "Accelerate, stage 2",
    "Accelerate, stage 3",
]
ERRORS = {
    "error: forced away": ["ValueError", '"zero_force_ds_cpu_optimizer": true', "DeepSpeedCPUAdam", "remove that line"],
    "error: unknown key": ["ValueError", "'adam_w_mode'", "lr, betas, eps"],
    "error: bad value": ["ValueError", "beta2", "[0, 1)", "1.5"],
    "error: lr auto": ["ValueError", "optimizer.params.lr is 'auto'", "write a number"],
    "error: Trainer, contradiction": ["ValueError", "optimizer.params.betas=0.99 vs hf beta2=0.95"],
    "error: Trainer, class and another block": ["ValueError", "was given ADOPT", "'AdamW'", "remove that block"],
    "error: Trainer, object and another block": ["ValueError", "was given ADOPT", "'AdamW'", "remove that block"],
    "error: Trainer, object": ["ValueError", "`optimizers`", 'write optim="adopt"'],
    "error: accumulated, offloaded, stage 2": ["RuntimeError", "micro-batches", "stage 2", "stage 1, or no offload"],
    "error: accumulated, offloaded, stage 3": ["RuntimeError", "micro-batches", "stage 3"],
    "error: Trainer, another block": [
        "ValueError",
        'optim="adopt"',
        "'AdamW'",
        'remove that block (the line "optimizer"',
    ],
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of each of the two processes."""
    folder = tmp_path_factory.mktemp("deepspeed")
    torchrun(2, "deepspeed_job.py", folder, timeout=550)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_trained_together(found: list[dict[str, Any]]) -> None:
    assert [rank["world_size"] for rank in found] == [2, 2]


@pytest.mark.parametrize("scenario", SAME_WEIGHTS)
def test_the_weights_are_those_of_one_process(scenario: str, found: list[dict[str, Any]]) -> None:
    for rank in (r[scenario] for r in found):
        assert rank["optimizer"] == "ADOPT"
        assert rank["difference"] < 1e-6
        assert rank["groups"] == [0.1, 0.0]
        assert (rank["betas"], rank["eps"]) == ([0.9, 0.9999], 1e-6)
        assert len(rank["steps_of_one_process"]) == 3  # or nothing came late
        counted = rank["steps"] if rank["stage"] == 0 else rank["tensor_steps"]
        assert counted == rank["steps_of_one_process"]
    stage = [int(word) for word in scenario.split() if word.isdigit()]
    assert found[0][scenario]["stage"] == (stage[0] if stage else 2)


@pytest.mark.parametrize(
    "scenario",
    [
        "routed apart, stage 0",
        "routed apart, stage 3",
        *(f"accumulated, stage {stage}" for stage in (0, 1, 2, 3)),
        *(f"accumulated, offloaded, stage {stage}" for stage in (1, 2, 3)),
        "twice with the same arguments",
    ],
)
def test_and_where_processes_or_micro_batches_differ(scenario: str, found: list[dict[str, Any]]) -> None:
    """Experts that are used by some processes, or in some of the micro-batches of a step, with clipping."""
    for rank in (r[scenario] for r in found):
        assert rank["difference"] < 1e-6
        assert rank.get("clipped", 20) >= 5  # or the norm was not put to the test
        assert rank.get("args", True)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_frozen_parameters(stage: int, found: list[dict[str, Any]]) -> None:
    for rank in (r[f"frozen, stage {stage}"] for r in found):
        assert "hidden.weight" in rank["moved"]
        assert "table.weight" not in rank["moved"]


@pytest.mark.parametrize("stage", [0, 2])
def test_an_engine_that_nobody_holds_is_gone(stage: int, found: list[dict[str, Any]]) -> None:
    assert [rank[f"freed, stage {stage}"]["alive"] for rank in found] == [[], []]


def test_other_ways_to_hand_it_over(found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert rank["by function without parameters"]["optimizer"] == "ADOPT"
        assert rank["by a subclass"]["difference"] < 1e-6


def test_late_gradients_under_ddp(found: list[dict[str, Any]]) -> None:
    for rank in (r["by DDP"] for r in found):
        assert rank["difference"] < 1e-6
        assert rank["steps_equal"] is True


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_checkpoint_keeps_the_step_counts_of_tensors(stage: int, found: list[dict[str, Any]]) -> None:
    assert max(rank[f"resumed, stage {stage}"]["difference"] for rank in found) < 1e-6


def test_zero_does_not_call_adopt_untested(found: list[dict[str, Any]]) -> None:
    assert [rank["untested"] for rank in found] == [[], []]
    assert all(rank["messages"] > 0 for rank in found)  # or nothing was listened to


@pytest.mark.parametrize("scenario", ERRORS)
def test_errors(scenario: str, found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert [words for words in ERRORS[scenario] if words not in rank[scenario]] == [], rank[scenario]


def test_auto_under_the_trainer_means_adopts_own_numbers(found: list[dict[str, Any]]) -> None:
    for rank in (r["Trainer, auto"] for r in found):
        assert (rank["optimizer"], rank["wrapper"]) == ("ADOPTW", "DeepSpeedZeroOptimizer")
        assert [group["weight_decay"] for group in rank["groups"]] == [0.1, 0.0]
        assert rank["base_lr"] == 3e-3
        for group in rank["groups"]:
            assert (group["betas"], group["eps"], group["decouple"]) == ([0.9, 0.9999], 1e-6, True)


def test_what_is_set_under_the_trainer_fills_auto(found: list[dict[str, Any]]) -> None:
    for group in found[0]["Trainer, set"]["groups"]:
        assert (group["betas"], group["eps"], group["clip_exp"]) == ([0.9, 0.99], 1e-7, None)


def test_what_is_written_in_the_block_stays(found: list[dict[str, Any]]) -> None:
    for group in found[0]["Trainer, written"]["groups"]:
        assert (group["betas"], group["weight_decay"]) == ([0.8, 0.99], 0.0)


def test_8_bits_in_the_block_leave_embeddings_and_small_tensors_in_float32(found: list[dict[str, Any]]) -> None:
    groups = found[0]["Trainer, 8 bits"]["groups"]
    assert [(group["state_bits"], group["weight_decay"]) for group in groups] == [(8, 0.1), (32, 0.1), (32, 0.0)]
