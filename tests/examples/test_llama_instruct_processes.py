"""examples/llama_instruct as its users start it: fresh processes, the whole offline recipe, launchers, shards.

Every test on several processes asserts how many trained together: a launcher that starts two runs of one process
would pass everything else.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.examples.test_llama_instruct import EXAMPLE, LORA, write_toy
from tests.examples.toy import losses
from tests.support import processes
from tests.support.forks import LAUNCHED
from tests.support.processes import ABORTED, ROOT, Finished, accelerate

# It helps the recipe where CPUs need that. As users do not start it, it runs in forks that have these imported.
RECIPE = ROOT / "tests" / "processes" / "recipe.py"
MODULES = (
    *LAUNCHED,
    "datasets",
    "matplotlib.figure",
    "peft",
    "torch.distributed.fsdp",
    "transformers.models.llama.modeling_llama",
    "trl.trainer.sft_trainer",
)


def run(folder: Path, *command: object) -> Finished:
    modules = MODULES if RECIPE in command else ()
    done = processes.run(*command, env={"HF_HOME": str(folder / "hf")}, modules=modules, timeout=900)
    if ABORTED in done.stderr and "model and curves (loss.png) in" in done.stdout:  # the work is done
        done.returncode = 0
    return done


@pytest.fixture(scope="module")
def toy_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base_config of a smaller model than the recipe's and fewer steps, and the cache for it."""
    folder = tmp_path_factory.mktemp("base")
    settings = yaml.safe_load((EXAMPLE / "configs" / "base.yaml").read_text())
    settings |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "max_steps": 10, "vocab_size": 512}
    (folder / "base.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("config", ["stdlib", "stdlib_lora"])
def test_the_offline_recipe(config: str, toy_base: Path, tmp_path: Path) -> None:
    """From nothing to a score, at a fraction of its length: base model, tuning, questions, an answer."""
    argv = ["--config", EXAMPLE / "configs" / f"{config}.yaml", "--base_config", toy_base / "base.yaml", "--use_cpu"]
    argv += ["--cache_dir", toy_base / "cache", "--max_steps", 20, "--eval_steps", 20, "--questions", 40]
    argv += ["--max_train_records", 1000, "--max_eval_records", 50, "--max_length", 256]
    output, new = tmp_path / "out", not (toy_base / "cache").exists()
    result = run(tmp_path, EXAMPLE / "train.py", *argv, "--output_dir", output)
    assert result.returncode == 0, result.stderr
    assert ("pretraining a LLaMA of" if new else "the base model is in") in result.stderr
    assert not list((toy_base / "cache").glob("*unfinished*"))
    before, after = losses(output, "eval_loss")
    assert f"step 20: held-out loss {before:.4f} (step 0) -> {after:.4f}" in result.stdout
    assert after < before
    scores = json.loads((output / "evaluation.json").read_text())
    for when in ("before", "after"):
        assert scores[when].keys() == {"concurrency", "interfaces", "language", "network", "elsewhere", "all"}
        assert scores[when]["all"]["questions"] == 40
        assert 0 <= scores[when]["all"]["accuracy"] <= 1
    for name in ("loss.png", "evaluation.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")
    assert "> Which part of the library is this function from?" in result.stdout
    assert (output / ("adapter_model.safetensors" if "lora" in config else "model.safetensors")).is_file()

    again = run(tmp_path, EXAMPLE / "evaluate.py", output, "--limit", 40, "--use_cpu", "--out", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "again" / "evaluation.json").read_text())["after"] == scores["after"]


# The modes that differ in how weights are gathered and saved, with the distributed type to find.
MODES = {
    "ddp": "MULTI_CPU",
    "zero2": "DEEPSPEED",
    "zero2_offload": "DEEPSPEED",
    "zero3": "DEEPSPEED",
    "fsdp2_sharded": "FSDP",
}
RESUMED = {("zero3", "LoRA"), ("fsdp2_sharded", "full")}
STEPS = 6


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, list[str], Path]]:
    """`alone(kind)`: a folder, the arguments and the output of one process's run, of all weights or of LoRA."""
    folder = tmp_path_factory.mktemp("alone")
    # Clipped at another norm than DeepSpeed is given by default.
    write_toy(folder, max_steps=STEPS, eval_steps=3, save_steps=3, max_grad_norm=0.3)

    @functools.cache
    def once(kind: str) -> tuple[Path, list[str], Path]:
        argv = ["--config", str(folder / "toy.yaml"), *((*LORA, "--lora_dropout", "0") if kind == "LoRA" else ())]
        options = ["--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2"]
        result = run(folder, EXAMPLE / "train.py", *argv, *options, "--output_dir", folder / kind)
        assert result.returncode == 0, result.stderr
        return folder, argv, folder / kind

    return once


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("ddp", "LoRA"),
        ("zero2", "LoRA"),
        ("zero2_offload", "full"),
        ("zero3", "full"),
        ("zero3", "LoRA"),
        ("fsdp2_sharded", "full"),
    ],
)
def test_two_processes_are_one_run(
    mode: str, kind: str, alone: Callable[[str], tuple[Path, list[str], Path]], tmp_path: Path
) -> None:
    """The same curve and whole weights, from the ADOPT that was asked for; where it is RESUMED, exactly.

    With two micro-batches a step, the last step of an epoch with one: DeepSpeed counts them otherwise than Accelerate.
    """
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    folder, argv, whole = alone(kind)
    options = ["--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2]
    output = tmp_path / "out"
    command = [*accelerate(mode), RECIPE, tmp_path, EXAMPLE / "train.py", *argv, *options, "--output_dir", output]
    result = run(folder, *command)
    assert result.returncode == 0, result.stderr
    for rank in range(2):
        seen = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert (seen["world_size"], seen["distributed_type"]) == (2, MODES[mode])
        assert seen["optimizer"] == "adopt_hf.optimizer.ADOPTW"
    assert "16 sequences a step in 2 process(es)" in result.stderr
    for key in ("loss", "eval_loss", "learning_rate"):
        assert losses(output, key) == pytest.approx(losses(whole, key), rel=1e-4), key
    name = "adapter_model.safetensors" if kind == "LoRA" else "model.safetensors"
    weights, reference = load_file(output / name), load_file(whole / name)
    assert weights.keys() == reference.keys()
    for key in weights:
        torch.testing.assert_close(weights[key], reference[key], rtol=0, atol=1e-5)

    if (mode, kind) not in RESUMED:
        return
    (output / f"checkpoint-{STEPS}" / "complete.json").unlink()
    again = run(folder, *command, "--resume_from_checkpoint", "last")
    assert again.returncode == 0, again.stderr
    assert f"going on from {output / 'checkpoint-3'}" in again.stderr
    resumed = load_file(output / name)
    assert all(torch.equal(weights[key], resumed[key]) for key in weights)
