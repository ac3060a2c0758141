"""The Python of docs/guides/, run as it stands: each page trains a small model with ADOPT."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adopt_hf.hyperparameters import OPTIONS
from adopt_hf.identity import innermost, is_adopt_optimizer

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
TRAIN = {"trl": "trainer", "peft": "trainer", "checkpoints": "trainer", "accelerate": "optimizer"}  # page -> what steps
VOCABULARY = 32


def blocks(page: Path, language: str) -> list[str]:
    """Return the code of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def beforehand() -> dict[str, Any]:
    """Return the names that the pages take for granted."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    rows = (torch.randint(VOCABULARY, (64, 1)) + torch.arange(8)) % VOCABULARY
    dataset = [{"input_ids": row, "labels": row} for row in rows]
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return {
        "model": LlamaForCausalLM(config),
        "dataset": dataset,
        "loader": DataLoader(dataset, batch_size=8),
        "tokenizer": PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w1", eos_token="w2", unk_token="w0"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_the_python_of_a_guide_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = beforehand()
    if page.stem == "trl":
        from datasets import Dataset

        found["dataset"] = Dataset.from_list([{"text": " ".join(f"w{i + j}" for j in range(8))} for i in range(3, 20)])
    code = [one.replace('SFTConfig("out", ', 'SFTConfig("out", use_cpu=True, ') for one in blocks(page, "python")]
    assert code, page
    for one in code:
        exec(compile(one, str(page), "exec"), found)
    if page.stem in TRAIN:
        stepped = found[TRAIN[page.stem]]
        optimizer = innermost(getattr(stepped, "optimizer", stepped))
        assert is_adopt_optimizer(optimizer)
        assert max(float(state["step"]) for state in optimizer.state.values()) >= 7
    if page.stem == "checkpoints":
        assert (Path(found["checkpoint"]).name, list(found["skipped"])) == ("checkpoint-20", [])
    if page.stem == "accelerate":
        assert math.isfinite(found["loss"].item())
    if page.stem == "deepspeed":
        assert found["config"]["zero_optimization"]["stage"] == 2
        (block,) = blocks(page, "json")
        assert set(json.loads(block)["optimizer"]["params"]) <= set(OPTIONS)


def test_each_guide_that_trains_is_there() -> None:
    assert set(TRAIN) <= {page.stem for page in GUIDES}
