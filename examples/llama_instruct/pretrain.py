"""Pretrain a small LLaMA from random weights on the source of Python's standard library, for a recipe to start from.

python examples/llama_instruct/pretrain.py --config examples/llama_instruct/configs/base.yaml --output_dir FOLDER

It is made once and kept: the folder is given its name when it is complete.
"""

import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # `python FILE` finds the package `examples`

import tokenizers
import torch
import transformers
import yaml
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

import adopt_hf  # noqa: F401  registers optim="adopt"; must come before the parser is built
from examples.llama_instruct import functions
from examples.llama_instruct.arguments import HERE
from examples.shared import launch
from examples.shared.cli import Parser, run
from examples.shared.errors import InputError, one_line
from examples.shared.text import END_OF_TEXT, train_bpe

logger = logging.getLogger("llama_instruct")
HELD_OUT_FILES = 6  # one in 6 of the held-out files is evaluated on, to save time
PADDING = "<|padding|>"


@dataclass
class Architecture:
    """The LLaMA. Its context may be longer than the sequences that it is pretrained on."""

    vocab_size: int = 2048
    hidden_size: int = 128
    intermediate_size: int = 352
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    max_position_embeddings: int = 512

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.vocab_size < 258:
            raise InputError(f"vocab_size must be at least 258 (bytes, end of text, padding), got {self.vocab_size}")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise InputError(
                f"hidden_size must be a multiple of 2 * num_attention_heads, got {self.hidden_size} and "
                f"{self.num_attention_heads}"
            )


def folder_for(config: Path, cache_dir: Path) -> Path:
    """Return the folder of the model that the file `config` describes. It exists once the model has been made.

    The name depends on everything that the weights depend on, except the number of threads.
    """
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"base_config {config}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise InputError(f"base_config {config} is not valid YAML: {one_line(error)}") from None
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for module, source in functions.sources(held_out=False):
        digest.update(f"{module}\0{source}\0".encode())
    digest.update(repr((torch.__version__, transformers.__version__, tokenizers.__version__)).encode())
    return cache_dir / f"llama-{config.stem}-{digest.hexdigest()[:16]}"


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE, trained on `texts`."""
    bpe = train_bpe(texts, vocab_size, [END_OF_TEXT, PADDING])
    tokens = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": PADDING}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, clean_up_tokenization_spaces=False, **tokens)


def pretrain(architecture: Architecture, args: SFTConfig, folder: Path) -> dict[str, Any]:
    """Train the model and its tokenizer, and save them in `folder`. Return the last evaluation."""
    text = [source for _, source in functions.sources(held_out=False)]
    tokenizer = train_tokenizer(text, architecture.vocab_size)
    set_seed(args.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            **asdict(architecture),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
        )
    )
    logger.info("pretraining a LLaMA of %s parameters, once", f"{model.num_parameters():,}")
    held_out = [source for _, source in functions.sources(held_out=True)][::HELD_OUT_FILES]
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_dict({"text": text}),
        eval_dataset=Dataset.from_dict({"text": held_out}),
        processing_class=tokenizer,
    )
    trainer.train()
    figures = trainer.evaluate()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return figures


def main() -> None:
    parser = Parser((Architecture, SFTConfig), __doc__, HERE / "configs" / "base.yaml", runs=None)
    architecture, args = parser.parse(check=lambda _, args: launch.check_training(args))
    launch.show_logs("llama_instruct")
    folder = Path(args.output_dir)
    if folder.exists():
        logger.info("the base model is in %s", folder)
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.unfinished-")
    except OSError as error:
        raise InputError(f"{folder.parent} cannot be written: {error.strerror}") from None
    with unfinished:
        inside = Path(unfinished.name) / "model"
        args.output_dir, args.save_strategy = str(Path(unfinished.name) / "training"), "no"
        figures = pretrain(architecture, args, inside)
        if not folder.exists():  # another run can have been faster
            os.replace(inside, folder)
    logger.info("the base model, held-out loss %.3f nats per token, is in %s", figures["eval_loss"], folder)


if __name__ == "__main__":
    run(main)
