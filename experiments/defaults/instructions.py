"""A LLaMA, pretrained once with AdamW, that learns what the functions of the standard library do."""

import functools
import math
import os
from typing import Any

import torch
from torch import Tensor

from adopt_hf.backends import cache as files
from experiments.defaults import stacked
from experiments.defaults.language import VOCABULARY
from experiments.defaults.training import Batches, Named, Task, seeded, shuffled, train
from experiments.paper import gpt2

RANK, SCALE = 4, 2.0  # of LoRA; alpha is 8
RECORD = 80  # tokens; a record of more is left out
HELD_OUT_RECORDS = 256
BASE_STEPS = 1500


@functools.cache
def instructed() -> tuple[Named, dict[str, Tensor]]:
    """The pretrained weights, without a dimension for seeds, and the records: made once, then kept in the cache.

    The records are "train" and "held_out" (records, RECORD) token ids, 0 after the end, and "train_labels" and
    "held_out_labels", which are -100 but for the response.
    """
    folder = files.user_cache() / "adopt_hf"
    files.create(folder)
    file = folder / f"paper-llama-{BASE_STEPS}-{RECORD}-torch{torch.__version__}.pt"
    if not file.exists() or files.why_not_all_trusted(file):
        text, records = _texts()
        unfinished = file.with_name(f"{file.name}.{os.getpid()}.unfinished")
        torch.save({"base": _pretrain(text), "records": records}, unfinished)
        files.protect(unfinished)
        os.replace(unfinished, file)
    found = torch.load(file, weights_only=True)
    return found["base"], found["records"]


def _texts() -> tuple[Tensor, dict[str, Tensor]]:
    """Tokens to pretrain on, and the records; no file of the library is in both, but for the functions to learn."""
    from examples.gpt2_pretraining import arguments, data
    from examples.llama_instruct import functions

    with gpt2.quiet():
        tokenizer = data.load(arguments.DataArguments(vocab_size=VOCABULARY, block_size=128), batch_size=1).tokenizer
    needed, text = BASE_STEPS * 8 * 128, []
    sources = [source for _, source in functions.sources(held_out=False)]
    order = torch.randperm(len(sources), generator=seeded(0)).tolist()
    while len(text) < needed:
        text += [*tokenizer(sources[order.pop()], verbose=False)["input_ids"], tokenizer.eos_token_id]
    records: dict[str, Tensor] = {}
    for split, held_out in (("train", False), ("held_out", True)):
        rows, labels = [], []
        for function in functions.documented(held_out):
            prompt, response = function.instructions[0]
            asked = tokenizer(f"### Instruction:\n{prompt}\n\n### Response:\n")["input_ids"]
            answer = [*tokenizer(response)["input_ids"], tokenizer.eos_token_id]
            if len(asked) + len(answer) <= RECORD:
                rest = RECORD - len(asked) - len(answer)
                rows.append(asked + answer + [0] * rest)
                labels.append([-100] * len(asked) + answer + [-100] * rest)
        if held_out:
            kept = [len(rows) * i // HELD_OUT_RECORDS for i in range(HELD_OUT_RECORDS)]
            rows, labels = [rows[i] for i in kept], [labels[i] for i in kept]
        records |= {split: torch.tensor(rows), f"{split}_labels": torch.tensor(labels)}
    return torch.tensor(text[:needed]).view(BASE_STEPS, 1, 8, 128), records


def _pretrain(text: Tensor) -> Named:
    base = Task(
        name="base", title="", about="", seeds=1, steps=BASE_STEPS, rates=(4e-3,), warmup=50, floor=0.1, decay=0.1,
        clip=1.0, weights=_llama_weights, batches=lambda seed: zip(text[:, 0], text[:, 0], strict=True),
        loss=functools.partial(stacked.llama_loss, heads=4),
        evaluate=lambda w: trained.update(w) or torch.zeros(1),
    )  # fmt: skip
    trained: Named = {}
    train(base, [0], lambda groups: torch.optim.AdamW(groups, betas=(0.9, 0.99)), base.rates[0], BASE_STEPS)
    return {name: weight[0].clone() for name, weight in trained.items()}


def _llama_weights(seed: int) -> Named:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, bos_token_id=0, eos_token_id=0))
    return {name: weight.detach() for name, weight in model.named_parameters()}


def _adapters(seed: int) -> Named:
    """LoRA on all linear layers but the head, as PEFT begins: A at random, B zero."""
    generator, found = seeded(seed), {}
    for name, weight in instructed()[0].items():
        if "proj" in name:
            outputs, inputs = weight.shape
            uniform = torch.rand(RANK, inputs, generator=generator)
            found[name.replace(".weight", ".lora_A")] = (2 * uniform - 1) / math.sqrt(inputs)
            found[name.replace(".weight", ".lora_B")] = torch.zeros(outputs, RANK)
    return found


def _record_batches(seed: int) -> Batches:
    _, records = instructed()
    for chosen in shuffled(len(records["train"]), 8, seed):
        ids, labels = records["train"][chosen], records["train_labels"][chosen]
        yield ids, labels


def _instruct_loss(w: Named, ids: Tensor, labels: Tensor) -> Tensor:
    used = int((labels != -100).flatten(0, 1).any(0).nonzero().max()) + 1  # no record is longer
    whole = w if "lm_head.weight" in w else {name: weight[None] for name, weight in instructed()[0].items()} | w
    return stacked.llama_loss(whole, ids[:, :, :used], labels[:, :, :used], heads=4, scale=SCALE)


def _instruct_evaluate(w: Named) -> Tensor:
    """Return the mean loss over the tokens of the held-out responses."""
    _, records = instructed()
    seeds = len(next(iter(w.values())))
    total, count = torch.zeros(seeds), 0
    for ids, labels in zip(records["held_out"].split(64), records["held_out_labels"].split(64), strict=True):
        tokens = int((labels[:, 1:] != -100).sum())
        total += _instruct_loss(w, ids.expand(seeds, -1, -1), labels.expand(seeds, -1, -1)) * tokens
        count += tokens
    return total / count


def task(name: str, title: str, about: str, **settings: Any) -> Task:
    defaults: dict[str, Any] = {"weights": _adapters}
    return Task(
        name=name, title=title, about=about, seeds=8, steps=300, warmup=9, clip=1.0, batches=_record_batches,
        loss=_instruct_loss, evaluate=_instruct_evaluate, **defaults | settings,
    )  # fmt: skip
