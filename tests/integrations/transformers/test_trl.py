"""TRL's own scripts, by name and as they are, train with ADOPT: the commands of docs/trainer.md, offline.

- sft, dpo, grpo and reward: the first step moves nothing and later ones do (Adam's first step does), and the checkpoint
  holds ADOPT's hyperparameters as they were asked for and ADOPT's state; a run of AdamW does not pass for one;
- LoRA (`--use_peft`): the adapter alone is trained, and A's steps count from its first gradient that is not zero;
- GRPO whose rewards say nothing leaves the weights bit for bit, weight decay or not;
- a name or a key that is misspelt ends in an error that says which;
- two processes behind accelerate train together: the weights of one process that takes both their batches.

sft and the two processes are started as a user would; the rest are forks of a process that has imported TRL.
"""

import importlib.util
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adopt_hf.hyperparameters import WARMUP_EXPONENT
from tests.support.processes import ABORTED, ROOT, Finished, accelerate
from tests.support.processes import run as start

MISSING = [package for package in ("trl", "peft") if importlib.util.find_spec(package) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

STEPS, LEARNING_RATE, WEIGHT_DECAY = 3, 1e-2, 0.1
TINY = f"--max_steps {STEPS} --save_steps 1 --per_device_train_batch_size 4 --learning_rate {LEARNING_RATE}"
TINY += f" --weight_decay {WEIGHT_DECAY} --lr_scheduler_type constant --use_cpu --report_to none --disable_tqdm true"
DEFAULTS = {"betas": (0.9, 0.9999), "eps": 1e-6, "clip_exp": 0.25, "beta2_warmup": WARMUP_EXPONENT, "decouple": True}

SFT_ARGS = ["--optim_args", "beta2=0.95, clip_exp=0.3", "--bf16", "false"]
SFT_ASKED = {"betas": (0.9, 0.95), "clip_exp": 0.3}
GRPO_ARGS = ["--num_generations", "4", "--max_completion_length", "8", "--reward_funcs"]
CASES: dict[str, tuple[str, list[str]]] = {  # the script, and what is appended to its command
    "dpo": ("dpo", ["--optim_args", "beta2=0.99"]),
    # Whatever the model says, a group's rewards differ.
    "grpo": ("grpo", [*GRPO_ARGS, "think_format_reward", "judge.by_position", "--optim_args", "clip_exp=none"]),
    "grpo, equal rewards": ("grpo", [*GRPO_ARGS, "think_format_reward"]),
    "reward": ("reward", []),
    "sft, beta2_warmup": ("sft", ["--optim_args", "beta2_warmup=false"]),
    "sft, LoRA": ("sft", ["--use_peft", "--lora_r", "4", "--max_steps", "4"]),
    "sft, AdamW": ("sft", ["--optim", "adamw_torch"]),
    "unknown name": ("sft", ["--optim", "adoptt"]),
    "unknown key": ("sft", ["--optim_args", "beta3=1"]),
}
IMPORTED = ("adopt_hf", *(f"trl.trainer.{name}_trainer" for name in ("sft", "dpo", "grpo", "reward")))

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
JUDGE = "def by_position(completions, **_):\n    return [float(i) for i in range(len(completions))]\n"


# -- What the scripts are given ----------------------------------------------------------------------------------------


def command_of_the_page(script: str) -> list[str]:
    """Return the words of docs/trainer.md behind `python -m adopt_hf run` for one of TRL's scripts."""
    text = (ROOT / "docs" / "trainer.md").read_text(encoding="utf-8").replace("\\\n", "")
    (command,) = re.findall(rf"^    python -m adopt_hf run (-m trl\.scripts\.{script} .*)$", text, re.MULTILINE)
    return shlex.split(command)


def command(script: str, out: str, *more: str) -> list[str]:
    """The same for the tiny model, short; of two options with one name the later counts."""
    given = {"MODEL": "model", "DATA": f"data/{script}"}
    return [*(given.get(word, word) for word in command_of_the_page(script)), "--output_dir", out, *TINY.split(), *more]


def say(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def rows(script: str) -> list[dict[str, Any]]:
    """16 additions, each in the form that the trainer wants."""
    made = []
    for i in range(16):
        prompt = say("user", f"{i} plus {i + 3}?")
        right, wrong = say("assistant", f"That is {2 * i + 3}."), say("assistant", "No idea" + "!" * (i % 3))
        made.append(
            {
                "sft": {"prompt": prompt, "completion": right},
                "dpo": {"prompt": prompt, "chosen": right, "rejected": wrong},
                "grpo": {"prompt": prompt},
                "reward": {"chosen": prompt + right, "rejected": prompt + wrong},
            }[script]
        )
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model, data/SCRIPT and judge.py, all made here; the processes run in it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("trl")
    for script in ("sft", "dpo", "grpo", "reward"):
        (folder / "data" / script).mkdir(parents=True)
        lines = [json.dumps(row) for row in rows(script)]
        (folder / "data" / script / "train.jsonl").write_text("\n".join(lines[:12]))
        (folder / "data" / script / "test.jsonl").write_text("\n".join(lines[12:]))
    (folder / "judge.py").write_text(JUDGE)
    for name in ("cache", "tmp"):
        (folder / name).mkdir()

    bytes_ = Tokenizer(models.BPE())
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bytes_.train_from_iterator((message[0]["content"] for row in rows("dpo") for message in row.values()), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=TEMPLATE,
        model_max_length=128,
    )
    tokenizer.save_pretrained(folder / "model")

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def environment(folder: Path) -> dict[str, str]:
    return {
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TMPDIR": str(folder / "tmp"),
        "PYTHONIOENCODING": "utf-8",
    }


# -- What they leave ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    exit_code: int
    stdout: str
    stderr: str
    out: Path

    @classmethod
    def of(cls, done: Finished, out: Path) -> "Run":
        return cls(done.returncode, done.stdout, done.stderr, out)

    def check(self) -> "Run":
        assert self.exit_code == 0, self.stderr
        assert "Training completed" in self.stdout
        return self

    def optimizer(self, steps: int = STEPS) -> dict[str, Any]:
        return torch.load(self.out / f"checkpoint-{steps}" / "optimizer.pt", weights_only=True)

    def weights(self, step: int | None = None, name: str = "model.safetensors") -> dict[str, Tensor]:
        return load_file(self.out / (f"checkpoint-{step}" if step else "") / name)


@pytest.fixture(scope="module")
def sft(folder: Path, environment: dict[str, str]) -> Run:
    """A process of its own, `python -m adopt_hf run -m trl.scripts.sft ...`."""
    line = command("sft", "out/sft", *SFT_ARGS)
    return Run.of(start("-m", "adopt_hf", "run", *line, cwd=folder, env=environment), folder / "out" / "sft")


@pytest.fixture(scope="module")
def forked(folder: Path, environment: dict[str, str]) -> dict[str, Run]:
    options = {"cwd": folder, "env": environment, "modules": IMPORTED, "own_end": True}
    lines = {name: command(script, f"out/{name}", *more) for name, (script, more) in CASES.items()}
    return {
        name: Run.of(start("-m", "adopt_hf", "run", *line, **options), folder / "out" / name)
        for name, line in lines.items()
    }


@pytest.fixture(scope="module")
def initial(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def check_groups(run: Run, asked: dict[str, Any], steps: int = STEPS) -> None:
    """The checkpoint's hyperparameters are ADOPT's, with those asked for; its moments are of `steps` steps."""
    saved = run.optimizer(steps)
    expected = DEFAULTS | asked | {"lr": LEARNING_RATE}
    for group in saved["param_groups"]:
        assert {name: group.get(name, "not there") for name in expected} == expected
    assert [group["weight_decay"] for group in saved["param_groups"]] == [WEIGHT_DECAY, 0.0]
    assert len(saved["state"]) == sum(len(group["params"]) for group in saved["param_groups"]) > 0
    assert max(float(state["step"]) for state in saved["state"].values()) == steps
    assert all((state["exp_avg_sq"] > 0).any() for state in saved["state"].values())
    assert json.loads((run.out / f"checkpoint-{steps}" / "trainer_state.json").read_text())["global_step"] == steps
    assert torch.load(run.out / f"checkpoint-{steps}" / "training_args.bin", weights_only=False).optim == "adopt"


def check_weights(run: Run, initial: dict[str, Tensor]) -> None:
    """Nothing has moved after the first step, which takes v alone; everything has at the end."""
    first, last = run.weights(1), run.weights()
    shared = initial.keys() & last.keys()
    assert {name for name in initial if name.startswith("model.")} <= shared
    assert all(torch.equal(first[name], initial[name]) for name in shared)
    assert not any(torch.equal(last[name], initial[name]) for name in shared)


# -- One process -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sft(sft: Run, initial: dict[str, Tensor]) -> None:
    check_groups(sft.check(), SFT_ASKED)
    check_weights(sft, initial)
    assert sft.weights().keys() == initial.keys()
    assert {float(state["step"]) for state in sft.optimizer()["state"].values()} == {STEPS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("dpo", {"betas": (0.9, 0.99)}),
        ("grpo", {"clip_exp": None}),
        ("reward", {}),
        ("sft, beta2_warmup", {"beta2_warmup": False}),
    ],
)
def test_by_name(name: str, asked: dict[str, Any], forked: dict[str, Run], initial: dict[str, Tensor]) -> None:
    check_groups(forked[name].check(), asked)
    check_weights(forked[name], initial)
    assert {float(state["step"]) for state in forked[name].optimizer()["state"].values()} == {STEPS}


@pytest.mark.slow
def test_adamw_does_not_pass_for_it(forked: dict[str, Run], initial: dict[str, Tensor]) -> None:
    """Both checks of the tests above see it."""
    run = forked["sft, AdamW"].check()
    with pytest.raises(AssertionError, match="not there"):
        check_groups(run, {})
    with pytest.raises(AssertionError):
        check_weights(run, initial)


@pytest.mark.slow
def test_lora(forked: dict[str, Run], folder: Path) -> None:
    """B is zero until the second step moves it, so A's first gradient comes in the third of the four steps."""
    run = forked["sft, LoRA"].check()
    check_groups(run, {}, steps=4)
    counted = {tuple(s["exp_avg"].shape): float(s["step"]) for s in run.optimizer(4)["state"].values()}
    assert counted == {(4, 16): 2.0, (16, 4): 4.0}  # A, B

    first, last = (run.weights(step, "adapter_model.safetensors") for step in (1, None))
    assert len(last) == 8
    assert all(".lora_A." in name or ".lora_B." in name for name in last), "the base is not to be trained"
    for name in last:
        assert ".lora_A." in name or not first[name].any()
        assert not torch.equal(first[name], last[name])
    assert not list(run.out.rglob("model.safetensors"))


@pytest.mark.slow
def test_grpo_with_equal_rewards_changes_nothing(forked: dict[str, Run], initial: dict[str, Tensor]) -> None:
    """Every gradient is exactly zero: nothing has been observed, and ADOPT has not begun."""
    run = forked["grpo, equal rewards"].check()
    assert {float(state["step"]) for state in run.optimizer()["state"].values()} == {0.0}
    assert all(torch.equal(tensor, initial[name]) for name, tensor in run.weights().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("unknown name", r"--optim: invalid choice: 'adoptt' \(choose from .*\badopt\b"),
        ("unknown key", r"ValueError: .*'beta3'.*beta2"),
    ],
)
def test_what_is_misspelt_is_named(name: str, says: str, forked: dict[str, Run]) -> None:
    run = forked[name]
    assert run.exit_code not in (0, None)
    assert re.search(says, run.stderr.strip().splitlines()[-1]), run.stderr
    assert not list(run.out.rglob("*.safetensors"))


# -- Two processes -----------------------------------------------------------------------------------------------------


@pytest.mark.distributed
def test_two_processes_are_one_run(
    sft: Run, folder: Path, environment: dict[str, str], initial: dict[str, Tensor]
) -> None:
    """Two processes with batches of 2 train the weights that one with batches of 4 has trained."""
    line = command("sft", "out/ddp", *SFT_ARGS, "--per_device_train_batch_size", "2")
    done = start(*accelerate("ddp"), "-m", "adopt_hf", "run", *line, cwd=folder, env=environment)
    if ABORTED in done.stderr and "Model saved" in done.stdout:
        done.returncode = 0
    run = Run.of(done, folder / "out" / "ddp").check()

    assert len(list((run.out / f"checkpoint-{STEPS}").glob("rng_state_*.pth"))) == 2, "not one run of two processes"
    assert run.stdout.count("Training completed") == 1
    check_groups(run, SFT_ASKED)
    check_weights(run, initial)
    alone, together = sft.check().weights(), run.weights()
    apart = max((together[name] - alone[name]).abs().max().item() for name in initial)
    moved = min((alone[name] - initial[name]).abs().max().item() for name in initial)
    assert apart < 1e-6 < 1e-3 < moved
