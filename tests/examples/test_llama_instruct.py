"""examples/llama_instruct at toy size, in this process: what it trains, writes, resumes, reloads and refuses.

- all weights, or the adapter alone, are trained by ADOPT, on the responses alone;
- what a run leaves: a checkpoint, the model or the adapter, curves, and the losses before and after;
- 8 steps are 4 steps and 4 more, bit for bit, with and without LoRA;
- an adapter is reloaded and merged into the same function;
- packing changes the batches, not the loss;
- the questions have MMLU's format, their answers nothing that gives them away, and held-out functions stay held out;
- everything wrong is one line and exit code 2, names what is wrong and overwrites nothing; truncation is counted.

The whole offline recipe, and launchers: test_llama_instruct_processes.py.
"""

import collections
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

from tests.examples.script import Result, call

pytest.importorskip("trl", reason="trl is not installed")
pytest.importorskip("peft", reason="peft is not installed")

from examples.llama_instruct import adapters, data, evaluate, functions, pretrain, questions, settings
from examples.llama_instruct import train as train_module

EXAMPLE = Path(__file__).parents[2] / "examples" / "llama_instruct"
CONFIGS = sorted((EXAMPLE / "configs").glob("*.yaml"))
RECIPES = [path for path in CONFIGS if path.stem != "base"]
LORA = ("--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "down_proj")


def records(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"prompt": f"add {i} and {i + 1}", "completion": f"the sum is {2 * i + 1}"} for i in range(start, count)]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_base(folder: Path, hidden_size: int = 16, num_hidden_layers: int = 2) -> Path:
    """A tiny LLaMA with a tokenizer of its own."""
    texts = [f"{row['prompt']} {row['completion']}" for row in records(50)]
    tokenizer = pretrain.train_tokenizer(texts, 300)
    set_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_toy(folder: Path, **overrides: Any) -> Path:
    """A base model, instructions, and a config that tunes it on them."""
    make_base(folder / "base")
    write_jsonl(folder / "toy.jsonl", records(64))
    settings = {
        "model_name_or_path": str(folder / "base"),
        "dataset_name": "json",
        "data_files": [str(folder / "toy.jsonl")],
        "validation_fraction": 0.125,
        "chat_template_path": "templates/plain.jinja",
        "max_length": 96,
        "learning_rate": 1e-2,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "report_to": "none",
        "use_cpu": True,
    } | overrides
    (folder / "toy.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    batch = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    folder = tmp_path_factory.mktemp("toy")
    write_toy(folder, **batch, max_steps=8, eval_steps=4, eval_on_start=True, save_steps=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield folder


def train(toy: Path, output: Path, *argv: object) -> Result:
    return call(EXAMPLE / "train.py", "--config", toy / "toy.yaml", "--output_dir", output, *argv)


@pytest.fixture(scope="module")
def adapter(toy: Path) -> Path:
    output = toy.parent / "adapter"
    assert train(toy, output, *LORA, "--max_steps", 1).code == 0
    return output


@pytest.fixture(scope="module", params=["full", "LoRA"])
def finished(request: pytest.FixtureRequest, toy: Path) -> tuple[str, Path, Result]:
    """(kind, output folder, result) of a complete run."""
    output = toy.parent / f"finished-{request.param}"
    result = train(toy, output, *(LORA if request.param == "LoRA" else ()))
    assert result.code == 0, result.err
    return request.param, output, result


def weights_of(output: Path, kind: str) -> dict[str, torch.Tensor]:
    return load_file(output / ("adapter_model.safetensors" if kind == "LoRA" else "model.safetensors"))


def optimizer_of(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint / "optimizer.pt", weights_only=True)


# ----- a run -----


def test_what_a_run_leaves(finished: tuple[str, Path, Result]) -> None:
    _kind, output, result = finished
    for name in ("checkpoint-4", "checkpoint-8", "run.json", "tokenizer.json", "chat_template.jinja", "loss.png"):
        assert (output / name).exists(), name
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (output / "checkpoint-8" / "complete.json").is_file()
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    held_out = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    assert sorted(held_out) == [0, 4, 8]
    assert held_out[8] < held_out[0]
    last = result.out.strip().splitlines()[-1]
    assert last.startswith(f"step 8: held-out loss {held_out[0]:.4f} (step 0) -> {held_out[8]:.4f}; ")
    assert "56 training records, 8 sequences a step in 1 process(es)" in result.err


def test_adopt_trains_what_was_asked_for(finished: tuple[str, Path, Result], toy: Path) -> None:
    kind, output, _ = finished
    saved = optimizer_of(output / "checkpoint-8")
    assert all(group["clip_exp"] == 0.25 and group["decouple"] for group in saved["param_groups"])
    # A's gradient is zero while B is, and B moves in the second step for the first time.
    assert {float(state["step"]) for state in saved["state"].values()} == ({8.0} if kind == "full" else {6.0, 8.0})
    weights = weights_of(output, kind)
    assert len(weights) == len(saved["state"])
    before = load_file(toy / "base" / "model.safetensors")
    if kind == "full":
        assert all(not torch.equal(weights[name], before[name]) for name in weights if "norm" not in name)
    else:
        assert all("lora_" in name for name in weights)
        assert all(bool((w != 0).any()) for name, w in weights.items() if "lora_B" in name)


def test_loss_is_of_the_responses_alone(toy: Path) -> None:
    recipe, args, model_args = settings.parse(["--config", str(toy / "toy.yaml")], "")
    args.output_dir = str(toy / "unused")
    trainer = train_module.make_trainer(str(toy / "base"), recipe, args, model_args, [])
    tokenizer = trainer.processing_class
    for row in trainer.train_dataset.select(range(5)):
        learnt = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
        assert [label for label in row["labels"] if label != -100] == learnt
        text, response = tokenizer.decode(row["input_ids"]), tokenizer.decode(learnt)
        assert response.startswith("the sum is ")
        assert response.endswith(tokenizer.eos_token)
        assert text.endswith(f"\n\n### Response:\n{response}")


@pytest.mark.parametrize("kind", ["full", "LoRA"])
def test_a_resumed_run_is_the_uninterrupted_one(kind: str, toy: Path, tmp_path: Path) -> None:
    lora = LORA if kind == "LoRA" else ()
    halves = tmp_path / "halves"
    stop = ("--lr_scheduler_type", "constant", "--eval_strategy", "no")
    reference = tmp_path / "reference"
    assert train(toy, reference, *lora, *stop).code == 0
    assert train(toy, halves, *lora, *stop, "--max_steps", 4).code == 0
    result = train(toy, halves, *lora, *stop, "--resume_from_checkpoint", "last")
    assert result.code == 0, result.err
    assert "going on from" in result.err
    one, other = weights_of(reference, kind), weights_of(halves, kind)
    assert all(torch.equal(one[name], other[name]) for name in one | other)
    ours, theirs = optimizer_of(reference / "checkpoint-8"), optimizer_of(halves / "checkpoint-8")
    for index, state in ours["state"].items():
        assert all(torch.equal(value, theirs["state"][index][name]) for name, value in state.items())


def test_an_adapter_is_reloaded_and_merged(toy: Path, finished: tuple[str, Path, Result], tmp_path: Path) -> None:
    kind, output, _ = finished
    ids = torch.arange(2, 42).reshape(2, 20)
    with torch.no_grad():
        tuned = adapters.load(str(output))[0](input_ids=ids).logits
        base = AutoModelForCausalLM.from_pretrained(toy / "base")(input_ids=ids).logits
    assert (tuned - base).abs().max() > 1e-3
    result = call(EXAMPLE / "merge.py", output, tmp_path / "merged")
    if kind == "full":
        assert result.code == 2
        assert (
            result.last_error
            == f"merge.py: error: there is no adapter in {output}; give the folder of a run with use_peft"
        )
        return
    assert result.code == 0, result.err
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(input_ids=ids).logits
    # A weight and its adapter summed before or after the product: float32, inner products over up to 32 numbers.
    assert (merged - tuned).abs().max() < 1e-5
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    again = call(EXAMPLE / "merge.py", output, tmp_path / "merged")
    assert again.code == 2
    assert again.last_error == f"merge.py: error: output_dir {tmp_path / 'merged'} exists already; choose another"


def test_chat(finished: tuple[str, Path, Result]) -> None:
    _, output, _ = finished
    result = call(EXAMPLE / "chat.py", output, "add 3 and 4", "--use_cpu", "--max_new_tokens", "8")
    assert result.code == 0, result.err
    assert result.out.startswith("> add 3 and 4\n")
    assert call(EXAMPLE / "chat.py", output, " ").last_error == "chat.py: error: the prompt is empty; write a question"


def test_packing_changes_no_loss(toy: Path) -> None:
    """The sum of the losses over the held-out records, packed together or each for itself."""
    losses = {}
    for packing in ("false", "true"):
        options = ["--config", str(toy / "toy.yaml"), "--packing", packing, "--eval_packing", packing]
        recipe, args, model_args = settings.parse(options, "")
        args.output_dir, args.per_device_eval_batch_size = str(toy / "unused"), 64
        trainer = train_module.make_trainer(str(toy / "base"), recipe, args, model_args, [])
        losses[packing] = trainer.evaluate()["eval_loss"]
        if packing == "true":
            assert len(trainer.eval_dataset) < 8
    assert losses["true"] == pytest.approx(losses["false"], abs=2e-6)  # float32, sums in another order


def test_gradient_checkpointing_and_bf16(toy: Path, tmp_path: Path) -> None:
    result = train(
        toy, tmp_path / "run", "--gradient_checkpointing", "true", "--bf16", "true", "--dtype", "bfloat16", *LORA
    )
    assert result.code == 0, result.err
    saved = optimizer_of(tmp_path / "run" / "checkpoint-8")
    assert {state["exp_avg"].dtype for state in saved["state"].values()} == {torch.float32}


# ----- the questions and the instructions -----


@pytest.mark.slow
def test_questions_have_the_format_of_mmlu() -> None:
    held_out, trained = functions.documented(held_out=True), functions.documented(held_out=False)
    made = questions.make(held_out)
    assert made == questions.make(held_out)
    assert len(made) == len(held_out) > 100
    assert all(set(q) == {"question", "choices", "answer", "subject"} for q in made)
    assert all(len(set(q["choices"])) == 4 and q["choices"][q["answer"]] == q["subject"] for q in made)
    assert all(q["question"] == f.instructions[1][0] for q, f in zip(made, held_out, strict=True))
    # The place of the right answer says nothing: 4 standard deviations of a fair draw.
    places = collections.Counter(q["answer"] for q in made)
    expected = len(made) / 4
    assert all(abs(places[i] - expected) < 4 * (expected * 0.75) ** 0.5 for i in range(4))
    assert {q["subject"] for q in made} == {*functions.SUBJECTS, functions.OTHER}
    assert not {f.summary for f in held_out} & {f.summary for f in trained}
    assert not {f.module for f in held_out} & {f.module for f in trained}


def test_held_out_sources_are_not_pretrained_on() -> None:
    train_names = [name for name, _ in functions.sources(held_out=False)]
    held_out = [name for name, _ in functions.sources(held_out=True)]
    assert not set(train_names) & set(held_out)
    assert 0.05 < len(held_out) / (len(held_out) + len(train_names)) < 0.15


def test_functions_are_found_with_their_first_sentence() -> None:
    source = '''
def plain(a, b=1, *c, d: int = 2, **e):
    """Return the sum of a and b.  It is
    a number.

    More."""

class Outer:
    class Inner:
        async def method(self):
            """Wait until it
            is over"""
    def short(self):
        """Two words."""

def none(): pass
'''
    import ast

    found = list(functions.functions_in("os.path", ast.parse(source).body))
    assert [(f.signature, f.summary) for f in found] == [
        ("def plain(a, b=1, *c, d: int=2, **e)", "Return the sum of a and b."),
        ("class Inner: async def method(self)", "Wait until it is over"),
    ]
    assert found[0].instructions == (
        (f"What does this function of os.path do?\n\n{found[0].signature}", "Return the sum of a and b."),
        (f"Which part of the library is this function from?\n\n{found[0].signature}", "elsewhere"),
    )


# ----- configs -----


@pytest.mark.parametrize("config", RECIPES, ids=lambda p: p.stem)
def test_configs_are_read(config: Path) -> None:
    written = yaml.safe_load(config.read_text())
    recipe, args, model_args = settings.parse(["--config", str(config), "--use_cpu"], "")
    for name, value in written.items():
        read = next(getattr(part, name) for part in (recipe, args, model_args) if hasattr(part, name))
        if name not in ("chat_template_path", "lr_scheduler_type", "eval_strategy", "report_to", "optim_args"):
            assert read in (value, float(value) if isinstance(value, str) and "e-" in value else value) or (
                value == ["all-linear"] and read == "all-linear"
            ), name
    assert args.optim == "adopt"
    assert Path(args.chat_template_path).is_file()


def test_alpaca_prompts_are_stanfords() -> None:
    template = (EXAMPLE / "templates" / "alpaca.jinja").read_text()
    tokenizer = pretrain.train_tokenizer(["some text"], 300)
    tokenizer.chat_template = template
    plain = data.conversation("Name a colour.", "Blue.")
    below = data.conversation("Translate.\n\n### Input:\nblau", "blue")
    start, end = tokenizer.bos_token, tokenizer.eos_token
    assert tokenizer.apply_chat_template(plain["prompt"] + plain["completion"], tokenize=False) == (
        f"{start}Below is an instruction that describes a task. Write a response that appropriately completes the "
        f"request.\n\n### Instruction:\nName a colour.\n\n### Response:Blue.{end}"
    )
    assert tokenizer.apply_chat_template(below["prompt"], tokenize=False, add_generation_prompt=True) == (
        f"{start}Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\nTranslate.\n\n### Input:\n"
        "blau\n\n### Response:"
    )


# ----- bad input -----


def wrong(toy: Path, tmp_path: Path, *argv: object) -> str:
    """The one line that a run with `argv` ends with; it has written nothing."""
    result = train(toy, tmp_path / "out", *argv)
    assert result.code == 2, result.err
    assert not (tmp_path / "out").exists()
    return result.last_error


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "record 3 of the train split: 'completion' is missing"),
        ({"completion": "a"}, "record 3 of the train split: 'prompt' is missing"),
        ({"prompt": "a", "completion": " "}, "record 3 of the train split: 'completion' is empty"),
        ({"prompt": "", "completion": "a"}, "record 3 of the train split: 'prompt' is empty"),
    ],
)
def test_a_bad_record_is_named(row: dict[str, str], message: str, toy: Path, tmp_path: Path) -> None:
    rows = records(8)
    rows[3] = row
    path = write_jsonl(tmp_path / "bad.jsonl", rows)
    assert wrong(toy, tmp_path, "--data_files", path) == f"train.py: error: {message}"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ("--completion_column", "answer"),
            "has no column 'answer'; pass --completion_column, one of: prompt, completion",
        ),
        (("--data_files", "nowhere.jsonl"), "data set 'json' cannot be loaded: "),
        (("--max_length", "4"), "every prompt of the training split has max_length=4 tokens or more (the first "),
        (
            ("--chat_template_path", "none.jinja"),
            "chat_template_path none.jinja is not a file; the recipe has templates/",
        ),
        (
            ("--use_peft", "--lora_target_modules", "q_proj", "qq"),
            "this llama has no module called 'qq'; write all-linear, or some of ",
        ),
        (
            ("--use_peft", "--lora_target_modules", "qq"),
            "this llama has no module called 'qq'; write all-linear, or some of ",
        ),
        (("--use_peft", "--lora_r", "0"), "`r` should be a positive integer value but the value passed is 0"),
        (("--load_in_4bit",), "load_in_4bit and load_in_8bit need LoRA"),
        (("--model_name_or_path", "no/such"), "model 'no/such' cannot be loaded: "),
        (("--optim_args", "beta3=1"), "beta3"),
        (("--optim_args", "loraplus_lr_ratio=16"), "loraplus_lr_ratio in optim_args needs LoRA"),
        (("--optim", "adoptt"), "adoptt"),
        (("--learning_rat", "1"), "--learning_rat"),
        (
            ("--use_peft", "--lora_modules_to_save", "qq"),
            "lora_modules_to_save: this llama has no module called 'qq'",
        ),
        (("--learning_rate", "-1"), "learning_rate must be"),
        (("--per_device_train_batch_size", "0"), "per_device_train_batch_size must be at least 1, got 0"),
        (("--max_length", "1000"), "max_length is 1000, and the context of "),
        (("--validation_fraction", "0.999"), "leaves none to train on"),
        (("--eos_token", "<none>"), "eos_token '<none>' is not in the vocabulary of "),
        (("--validation_fraction", "1"), "validation_fraction must be in [0, 1), got 1.0"),
        (("--questions", "-1"), "questions must not be negative, got -1"),
        (("--resume_from_checkpoint", "last"), "no complete checkpoint to resume from"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_bad_arguments(argv: tuple[str, ...], message: str, toy: Path, tmp_path: Path) -> None:
    error = wrong(toy, tmp_path, *argv)
    assert error.startswith("train.py: error: ")
    assert message in error


def test_bad_config_files(toy: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("learning_rat: 1\n")
    assert "learning_rat" in call(EXAMPLE / "train.py", "--config", bad, "--use_cpu").last_error
    missing = call(EXAMPLE / "train.py", tmp_path / "none.yaml")
    assert missing.code == 2
    assert "alpaca_7b_full.yaml" in missing.last_error
    bad.write_text("a: [")
    assert "is not valid YAML" in call(EXAMPLE / "train.py", "--config", bad).last_error


def test_an_output_folder_is_not_overwritten(finished: tuple[str, Path, Result], toy: Path) -> None:
    _, output, _ = finished
    before = {p: p.stat().st_mtime_ns for p in output.rglob("*")}
    result = train(toy, output)
    assert result.code == 2
    assert "holds another run" in result.last_error
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*")} == before


def test_a_checkpoint_of_another_base_or_adapter_is_refused(
    finished: tuple[str, Path, Result], toy: Path, tmp_path: Path
) -> None:
    kind, output, _ = finished
    other = () if kind == "LoRA" else LORA
    result = train(toy, output, *other, "--resume_from_checkpoint", "last")
    assert result.code == 2
    assert f"checkpoint {output}/checkpoint-8 is of another run: adapter is " in result.last_error


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (
            {"hidden_size": 32},
            "it has [4, 32] for base_model.model.model.layers.0.mlp.down_proj.lora_A.weight, which takes",
        ),
        ({"num_hidden_layers": 4}, "it has nothing for base_model.model.model.layers.2."),
        ({"num_hidden_layers": 1}, "base_model.model.model.layers.1."),
    ],
    ids=["wider", "deeper", "shallower"],
)
def test_an_adapter_for_another_model_is_refused(
    other: dict[str, int], says: str, adapter: Path, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "other", **other)
    for script, *argv in (
        ("chat.py", adapter, "hello"),
        ("merge.py", adapter, tmp_path / "merged"),
        ("evaluate.py", adapter),
    ):
        result = call(EXAMPLE / str(script), *argv, "--base", base)
        assert result.code == 2, result.err
        assert f"adapter {adapter} is not for {base}: " in result.last_error
        assert says in result.last_error
    assert not (tmp_path / "merged").exists()


def test_a_checkpoint_of_another_optimizer_is_refused_and_a_finished_run_stays_as_it_is(
    finished: tuple[str, Path, Result], toy: Path
) -> None:
    kind, output, _ = finished
    last = (*(LORA if kind == "LoRA" else ()), "--resume_from_checkpoint", "last")
    other = train(toy, output, *last, "--max_steps", 12, "--optim", "adamw_torch")
    assert other.code == 2
    assert "is of another run: optim is adopt there and adamw_torch here" in other.last_error
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    done = train(toy, output, *last)
    assert done.code == 0
    assert done.out.startswith(f"finished already: the run in {output} has done all its steps (checkpoint-8)")
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("max_length: 12.5", "argument --max_length/--max-length: invalid int value: '12.5'"),
        ("lora_r: 8.5", "argument --lora_r/--lora-r: invalid int value: '8.5'"),
        ("questions: null", "questions must have a value, got null"),
        ("learning_rate: fast", "argument --learning_rate/--learning-rate: invalid float value: 'fast'"),
        ("resume_from_checkpoint: true", "no complete checkpoint to resume from"),
        ("empty_completions: drop", "empty_completions must be 'error' or 'keep', got 'drop'"),
    ],
    ids=lambda value: value.split(":")[0],
)
def test_types_in_a_config(line: str, message: str, toy: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load((toy / "toy.yaml").read_text()) | yaml.safe_load(line)
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(settings))
    result = call(EXAMPLE / "train.py", tmp_path / "wrong.yaml", "--output_dir", tmp_path / "out")
    assert result.code == 2, result.err
    assert message in result.last_error
    assert not (tmp_path / "out").exists()


def test_empty_responses_can_be_kept(toy: Path, tmp_path: Path) -> None:
    rows = records(16)
    rows[7]["completion"] = ""
    path = write_jsonl(tmp_path / "empty.jsonl", rows)
    argv = ("--data_files", path, "--validation_fraction", "0", "--max_steps", "1", "--empty_completions", "keep")
    result = train(toy, tmp_path / "out", *argv)
    assert result.code == 0, result.err
    assert "1 of 16 records of the train split have an empty response and are kept: 7\n" in result.err
    assert "16 training records" in result.err


def test_evaluate_refuses_before_it_scores(finished: tuple[str, Path, Result], toy: Path, tmp_path: Path) -> None:
    _, output, _ = finished
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for argv, message in (
        ((output, "--num_fewshot", "5"), "num_fewshot must be at least 0, and needs other --tasks than stdlib; got 5"),
        ((output, "--limit", "-1"), "limit must be at least 0 and batch_size at least 1, got -1"),
        ((output, "--out", tmp_path / "file" / "out"), "cannot be written: Not a directory"),
        ((output, "--base", "/no/such"), "model '/no/such' cannot be loaded"),
        ((tmp_path / "none",), "is not a folder; give the folder of a tuned model or an adapter"),
        ((tmp_path / "empty",), "pass --base"),
    ):
        result = call(EXAMPLE / "evaluate.py", *argv, "--use_cpu")
        assert result.code == 2, result.err
        assert message in result.last_error


def test_scores_of_groups() -> None:
    """As lm-eval has them: groups of groups of tasks, each task weighing as many questions as it has."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    results = {
        "group_subtasks": {"mmlu": ["mmlu_stem", "mmlu_other"], "mmlu_stem": ["a", "b"], "mmlu_other": ["c"]},
        "results": {
            "mmlu": {"alias": "mmlu"},
            "mmlu_stem": {"alias": " - stem"},
            "mmlu_other": {"alias": " - other"},
            "a": {"acc,none": 1.0},
            "b": {"acc,none": 0.25},
            "c": {"acc,none": 0.5},
        },
        "n-samples": {name: {"effective": count} for name, count in (("a", 10), ("b", 20), ("c", 70))},
    }
    scores = evaluate.of_groups(results, "mmlu")
    assert {name: (score.accuracy, score.questions) for name, score in scores.items()} == {
        "stem": (0.5, 30),
        "other": (0.5, 70),
        "all": (0.5, 100),
    }
    assert scores["all"].error == pytest.approx(0.05)
    assert evaluate.of_groups(results, "a")["all"].accuracy == 1.0
    del results["results"]["c"]["acc,none"]
    with pytest.raises(evaluate.InputError, match="task c has no accuracy"):
        evaluate.of_groups(results, "mmlu")


def test_long_records_are_counted(toy: Path, tmp_path: Path) -> None:
    rows = records(16)
    rows[2]["completion"] = "the sum is " + "1 " * 100
    rows[3]["completion"] = "the sum is " + "1 " * 100
    rows[5]["prompt"] = "add " + "1 " * 200
    path = write_jsonl(tmp_path / "long.jsonl", rows)
    argv = ("--data_files", path, "--validation_fraction", "0", "--max_steps", "1", "--max_length", "96")
    result = train(toy, tmp_path / "out", *argv)
    assert result.code == 0, result.err
    where = "of 16 records of the training split are longer than max_length=96 tokens and"
    assert f"2 {where} are truncated: 2, 3\n" in result.err
    assert f"1 {where} are left out, because their prompts are that long: 5\n" in result.err
    assert "15 training records" in result.err
    # Of a share that is held out at random the numbers are those of the file, too.
    held_out = train(toy, tmp_path / "half", *argv[:2], "--validation_fraction", "0.5", *argv[4:])
    assert held_out.code == 0, held_out.err
    named = re.findall(r"longer than max_length=96 tokens and are [^:]*: ([\d, ]+)\n", held_out.err)
    assert sorted(int(number) for numbers in named for number in numbers.split(",")) == [2, 3, 5]
