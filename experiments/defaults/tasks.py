"""The tasks of protocol.py: models, data, schedules and losses, all small and offline.

A task trains several seeds at once (stacked.py) in a plain loop. The loop does what a Trainer with these
settings does: every seed has an order of the data of its own, the learning rate follows a schedule, the norm of each
seed's gradient is clipped, and only matrices decay. All seeds are evaluated on the same held-out data, once, after the
last step.
"""

import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  torch's own name for it

from adopt_hf.backends import cache as files
from experiments.defaults import stacked
from experiments.paper import gpt2

Named = dict[str, Tensor]
Batches = Iterator[tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task. Its functions take weights whose first dimension is the seeds.

    Args:
        name: short, as part of file names.
        title: for tables.
        about: the model, the data and the steps, in a sentence.
        rates: the learning rates, AdamW's best first: the best mean of both AdamWs in the pilot, other seeds than
            those of the protocol.
        warmup: steps during which the learning rate rises from 0.
        floor: the learning rate at the end, as a share of `rates`; None: it falls with 1/sqrt(step) instead.
        decay: decoupled weight decay of the weights with two dimensions or more.
        clip: the largest norm of a seed's gradient; None: it is not clipped.
        beta2: of the ADOPTs. Less than the default in the runs that are long against the memory.
        together: seeds that are trained at once, in one part.
        weights: from a seed to the weights that are trained.
        batches: from a seed to its batches, one a step, without end.
        loss: the training loss (seeds,).
        evaluate: the held-out loss (seeds,), lower is better.
        ratio: from the name of a weight to the factor on its learning rate.
    """

    name: str
    title: str
    about: str
    seeds: int
    steps: int
    rates: tuple[float, ...]
    warmup: int = 0
    floor: float | None = 0.0
    decay: float = 0.0
    clip: float | None = None
    beta2: float = 0.9999
    together: int = 8
    weights: Callable[[int], Named]
    batches: Callable[[int], Batches]
    loss: Callable[..., Tensor]
    evaluate: Callable[[Named], Tensor]
    ratio: Callable[[str], float] = field(default=lambda name: 1.0)

    def rate(self, step: int, steps: int, warmup: int | None = None) -> float:
        """The factor on the learning rate of step `step`, which counts from 0, of `steps`."""
        warmup = self.warmup if warmup is None else warmup
        if step < warmup:
            return step / warmup
        if self.floor is None:
            return 1 / math.sqrt(step + 1)
        done = (step - warmup) / max(1, steps - warmup)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


def train(
    task: Task,
    seeds: Sequence[int],
    make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
    lr: float,
    steps: int,
    warmup: int | None = None,
) -> list[float]:
    """Train these seeds and return their held-out losses, infinite where not finite.

    Args:
        make: from param groups, with "lr" and "weight_decay", to an optimizer. All weights of a group lie in one tensor
            (seeds, numbers): the optimizers work element by element.
        warmup: instead of the task's.
    """
    weights = stacked.stack([task.weights(seed) for seed in seeds])
    kinds: dict[tuple[bool, float, bool], list[str]] = {}
    for name, weight in weights.items():  # the gradients of LoRA's A are zero once: ADOPT counts its steps from there
        kinds.setdefault((weight.dim() > 2, task.ratio(name), name.endswith("lora_A")), []).append(name)
    flats = [torch.cat([weights[name].flatten(1) for name in names], 1).requires_grad_() for names in kinds.values()]
    groups = [
        {"params": [flat], "lr": lr * ratio, "weight_decay": task.decay if matrix else 0.0}
        for flat, (matrix, ratio, _) in zip(flats, kinds, strict=True)
    ]
    shapes = {name: weight.shape for name, weight in weights.items()}
    del weights

    def views() -> Named:
        found: Named = {}
        for flat, names in zip(flats, kinds.values(), strict=True):
            parts = flat.split([shapes[name][1:].numel() for name in names], 1)
            found |= {name: part.view(shapes[name]) for name, part in zip(names, parts, strict=True)}
        return found

    optimizer = make(groups)
    streams = [task.batches(seed) for seed in seeds]
    for step in range(steps):
        factor = task.rate(step, steps, warmup)
        for group, (_, ratio, _) in zip(optimizer.param_groups, kinds, strict=True):
            group["lr"] = lr * ratio * factor
        batch = [torch.stack(parts) for parts in zip(*(next(stream) for stream in streams), strict=True)]
        task.loss(views(), *batch).sum().backward()
        if task.clip is not None:
            _clip([flat.grad for flat in flats if flat.grad is not None], task.clip)
        optimizer.step()
        for flat in flats:
            flat.grad = None
    with torch.no_grad():
        losses = task.evaluate({name: view.detach() for name, view in views().items()})
    return [loss if math.isfinite(loss) else math.inf for loss in losses.tolist()]


def _clip(gradients: Sequence[Tensor], largest: float) -> None:
    """Clip the norm of each seed's gradients, as torch.nn.utils.clip_grad_norm_ does."""
    norm = torch.stack([gradient.norm(dim=1) for gradient in gradients]).norm(dim=0)
    factor = (largest / (norm + 1e-6)).clamp_(max=1.0).unsqueeze(1)
    for gradient in gradients:
        gradient.mul_(factor)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _shuffled(count: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Batches of indices below `count`, every one once an epoch; the incomplete batch at the end is left out."""
    generator = _generator(seed)
    while True:
        yield from torch.randperm(count, generator=generator)[: count - count % batch].split(batch)


# GPT-2 on the source of Python's standard library, as examples/gpt2_pretraining has it.


@functools.cache
def library() -> tuple[Tensor, Tensor]:
    """The recipe's tokens of the training and the held-out text, int64, a long line each."""
    from examples.gpt2_pretraining import arguments, data

    with gpt2.quiet():
        corpus = data.load(arguments.DataArguments(vocab_size=VOCABULARY, block_size=128), batch_size=1)
    found = [np.fromfile(split.path, split.dtype).astype(np.int64) for split in (corpus.train, corpus.validation)]
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])


VOCABULARY = 1024
HELD_OUT_BLOCKS = 256


def _blocks(width: int) -> tuple[Tensor, Tensor]:
    """Training blocks, and HELD_OUT_BLOCKS held-out ones, evenly spaced."""
    train, held_out = (tokens[: len(tokens) // width * width].view(-1, width) for tokens in library())
    chosen = torch.arange(HELD_OUT_BLOCKS) * len(held_out) // HELD_OUT_BLOCKS
    return train, held_out[chosen]


def _gpt2_weights(seed: int, width: int, tokens: int) -> Named:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCABULARY, "n_positions": tokens, "n_layer": 2, "n_head": 4, "n_embd": width}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    return {name: weight.detach() for name, weight in model.named_parameters()}


def _gpt2_batches(seed: int, tokens: int) -> Batches:
    train, _ = _blocks(tokens)
    for chosen in _shuffled(len(train), 8, seed):
        yield (train[chosen],)


def _gpt2_evaluate(w: Named, tokens: int) -> Tensor:
    _, held_out = _blocks(tokens)
    seeds = len(w["transformer.wte.weight"])
    losses = [stacked.gpt2_loss(w, part.expand(seeds, -1, -1), heads=4) for part in held_out.split(32)]
    return torch.stack(losses).mean(0)


def _gpt2(name: str, title: str, about: str, width: int, tokens: int, **settings: Any) -> Task:
    return Task(
        name=name,
        title=title,
        about=about,
        floor=0.1,
        decay=0.1,
        clip=1.0,
        weights=functools.partial(_gpt2_weights, width=width, tokens=tokens),
        batches=functools.partial(_gpt2_batches, tokens=tokens),
        loss=functools.partial(stacked.gpt2_loss, heads=4),
        evaluate=functools.partial(_gpt2_evaluate, tokens=tokens),
        **settings,
    )


# A LLaMA, pretrained once with AdamW, that learns what the functions of the library do.

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
    order = torch.randperm(len(sources), generator=_generator(0)).tolist()
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
    generator, found = _generator(seed), {}
    for name, weight in instructed()[0].items():
        if "proj" in name:
            outputs, inputs = weight.shape
            uniform = torch.rand(RANK, inputs, generator=generator)
            found[name.replace(".weight", ".lora_A")] = (2 * uniform - 1) / math.sqrt(inputs)
            found[name.replace(".weight", ".lora_B")] = torch.zeros(outputs, RANK)
    return found


def _record_batches(seed: int) -> Batches:
    _, records = instructed()
    for chosen in _shuffled(len(records["train"]), 8, seed):
        ids, labels = records["train"][chosen], records["train_labels"][chosen]
        yield ids, labels


def _instruct_loss(w: Named, ids: Tensor, labels: Tensor) -> Tensor:
    used = int((labels != -100).flatten(0, 1).any(0).nonzero().max()) + 1  # no record is longer
    whole = w if "lm_head.weight" in w else {name: weight[None] for name, weight in instructed()[0].items()} | w
    return stacked.llama_loss(whole, ids[:, :, :used], labels[:, :, :used], heads=4, scale=SCALE)


def _instruct_evaluate(w: Named) -> Tensor:
    """Of the held-out records' responses, each token alike."""
    _, records = instructed()
    seeds = len(next(iter(w.values())))
    total, count = torch.zeros(seeds), 0
    for ids, labels in zip(records["held_out"].split(64), records["held_out_labels"].split(64), strict=True):
        tokens = int((labels[:, 1:] != -100).sum())
        total += _instruct_loss(w, ids.expand(seeds, -1, -1), labels.expand(seeds, -1, -1)) * tokens
        count += tokens
    return total / count


def _instruct(name: str, title: str, about: str, **settings: Any) -> Task:
    defaults: dict[str, Any] = {"weights": _adapters}
    return Task(
        name=name, title=title, about=about, seeds=8, steps=300, warmup=9, clip=1.0, batches=_record_batches,
        loss=_instruct_loss, evaluate=_instruct_evaluate, **defaults | settings,
    )  # fmt: skip


# scikit-learn's digits: a perceptron, a small vision transformer, a VAE.


@functools.cache
def _digits() -> dict[str, Tensor]:
    """ "x" (1,197 pictures, 64 pixels) to learn from and "y" their classes; "test_x" and "test_y" of the other 600."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x, y = torch.tensor(found.data / 16, dtype=torch.float32), torch.tensor(found.target)
    order = torch.randperm(len(x), generator=_generator(0))
    learn, test = order[:1197], order[1197:]  # as in experiments/paper/pictures.py, its validation among the test
    return {"x": x[learn], "y": y[learn], "test_x": x[test], "test_y": y[test]}


def _perceptron_weights(seed: int) -> Named:
    torch.manual_seed(seed)
    hidden, classifier = torch.nn.Linear(64, 256), torch.nn.Linear(256, 10)
    model = torch.nn.ModuleDict({"hidden": hidden, "classifier": classifier})
    return {name: weight.detach() for name, weight in model.named_parameters()}


def _digit_batches(seed: int) -> Batches:
    digits = _digits()
    for chosen in _shuffled(len(digits["x"]), 64, seed):
        yield digits["x"][chosen], digits["y"][chosen]


def _perceptron_loss(w: Named, x: Tensor, y: Tensor) -> Tensor:
    return stacked.cross_entropy(stacked.perceptron(w, x), y)


def _perceptron_evaluate(w: Named) -> Tensor:
    digits, seeds = _digits(), len(w["hidden.weight"])
    return _perceptron_loss(w, digits["test_x"].expand(seeds, -1, -1), digits["test_y"].expand(seeds, -1))


def _vit_weights(seed: int) -> Named:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=2, num_channels=1, num_labels=10))
    return {name: weight.detach() for name, weight in model.named_parameters()}


def _shifted_batches(seed: int) -> Batches:
    """Pictures, each batch moved by up to one pixel in both directions: few pictures would be learnt by heart."""
    digits, generator = _digits(), _generator(1000 + seed)
    padded = F.pad(digits["x"].view(-1, 1, 8, 8), (1, 1, 1, 1))
    for chosen in _shuffled(len(padded), 32, seed):
        top, left = torch.randint(3, (2,), generator=generator).tolist()
        yield padded[chosen, :, top : top + 8, left : left + 8], digits["y"][chosen]


def _vit_loss(w: Named, x: Tensor, y: Tensor) -> Tensor:
    return stacked.cross_entropy(stacked.vit(w, x, heads=2), y)


def _vit_evaluate(w: Named) -> Tensor:
    digits, seeds = _digits(), len(w["classifier.weight"])
    pixels = digits["test_x"].view(-1, 1, 8, 8).expand(seeds, -1, -1, -1, -1)
    return _vit_loss(w, pixels, digits["test_y"].expand(seeds, -1))


LATENT, DRAWS = 8, 20


def _vae_weights(seed: int) -> Named:
    from experiments.paper.vae import VAE

    torch.manual_seed(seed)
    return {name: weight.detach() for name, weight in VAE(64, 128, LATENT).named_parameters()}


def _vae_batches(seed: int) -> Batches:
    grey, generator = _digits()["x"], _generator(1000 + seed)
    for chosen in _shuffled(len(grey), 64, seed):
        yield grey[chosen].bernoulli(generator=generator), torch.randn(64, LATENT, generator=generator)


def _vae_loss(w: Named, x: Tensor, noise: Tensor) -> Tensor:
    return stacked.vae_bound(w, x, noise).mean(1)


def _vae_evaluate(w: Named) -> Tensor:
    """The bound, with DRAWS draws of z for each picture."""
    generator, seeds = _generator(0), len(w["encoder.0.weight"])
    x = _digits()["test_x"].bernoulli(generator=generator)
    noises = (torch.randn(len(x), LATENT, generator=generator) for _ in range(DRAWS))
    bounds = [_vae_loss(w, x.expand(seeds, -1, -1), noise.expand(seeds, -1, -1)) for noise in noises]
    return torch.stack(bounds).mean(0)


# Long against the memory: the next token after six, with a perceptron.

WINDOW = 6


def _window_weights(seed: int) -> Named:
    torch.manual_seed(seed)
    parts = {
        "embedding": torch.nn.Embedding(VOCABULARY, 16),
        "hidden": torch.nn.Linear(16 * WINDOW, 32),
        "head": torch.nn.Linear(32, VOCABULARY),
    }
    return {name: weight.detach() for name, weight in torch.nn.ModuleDict(parts).named_parameters()}


def _window_batches(seed: int) -> Batches:
    tokens, generator = library()[0], _generator(seed)
    around = torch.arange(WINDOW + 1)
    while True:
        rows = tokens[torch.randint(len(tokens) - WINDOW, (32, 1), generator=generator) + around]
        yield rows[:, :WINDOW], rows[:, WINDOW]


def _window_loss(w: Named, ids: Tensor, following: Tensor) -> Tensor:
    return stacked.cross_entropy(stacked.window(w, ids), following)


def _window_evaluate(w: Named) -> Tensor:
    rows, seeds = library()[1].unfold(0, WINDOW + 1, 11)[:4096], len(w["head.bias"])
    return _window_loss(w, rows[:, :WINDOW].expand(seeds, -1, -1), rows[:, WINDOW].expand(seeds, -1))


def _long(name: str, title: str, about: str, **settings: Any) -> Task:
    return Task(
        name=name, title=title, about=about, seeds=8, warmup=100, floor=0.1, decay=0.1, clip=1.0,
        weights=_window_weights, batches=_window_batches, loss=_window_loss, evaluate=_window_evaluate, **settings,
    )  # fmt: skip


TASKS = {
    task.name: task
    for task in (
        _gpt2(
            "gpt2_500",
            "GPT-2, 500 steps",
            "GPT-2 of 170,000 weights on the source of the standard library, 500 steps of 8 x 64 tokens",
            width=64, tokens=64, seeds=8, steps=500, warmup=25, rates=(3e-3, 1e-3, 1e-2), together=4,
        ),
        _instruct(
            "lora",
            "LoRA",
            "a pretrained LLaMA of 232,000 weights with LoRA of rank 4 on all linear layers and no dropout, 300 "
            "steps of 8 records of up to 80 tokens",
            rates=(1e-2, 3e-3, 3e-2),
        ),
        _instruct(
            "llama",
            "LLaMA, all weights",
            "the same LLaMA, all of its weights tuned on what the library's functions do, 300 steps of 8 records",
            rates=(3e-3, 1e-3, 1e-2), weights=lambda seed: dict(instructed()[0]),
        ),
        _instruct(
            "loraplus",
            "LoRA+",
            "the same with the learning rate of B 16 times that of A",
            rates=(3e-3, 1e-3, 1e-2), ratio=lambda name: 16.0 if name.endswith("lora_B") else 1.0,
        ),
        Task(
            name="mlp", title="Perceptron", about="a perceptron with 256 hidden units on the digits, 500 steps of 64",
            seeds=8, steps=500, rates=(3e-2, 1e-2, 1e-1), floor=None, weights=_perceptron_weights,
            batches=_digit_batches, loss=_perceptron_loss, evaluate=_perceptron_evaluate,
        ),
        Task(
            name="vit", title="Vision transformer",
            about="a ViT of 27,000 weights on the digits, moved by a pixel, 600 steps of 32",
            seeds=8, steps=600, rates=(3e-3, 1e-3, 1e-2), warmup=30, decay=0.1, clip=1.0, weights=_vit_weights,
            batches=_shifted_batches, loss=_vit_loss, evaluate=_vit_evaluate,
        ),
        Task(
            name="vae", title="VAE", about="the VAE of experiments/paper/vae.py on the digits, 1,500 steps of 64",
            seeds=8, steps=1500, rates=(1e-2, 3e-3, 3e-2), weights=_vae_weights, batches=_vae_batches,
            loss=_vae_loss, evaluate=_vae_evaluate,
        ),
        _gpt2(
            "demo",
            "Demo",
            "the demo of this repository: GPT-2 of 544,000 weights, 2,400 steps of 8 x 128 tokens",
            width=128, tokens=128, seeds=5, steps=2400, warmup=100, rates=(4e-3, 1.3e-3, 1.2e-2), together=1,
        ),
        _long(
            "long_99", "Long, beta2 0.99",
            "the next token after six with a perceptron of 53,000 weights, 5,000 steps of 32: 50 memories of 0.99",
            steps=5000, rates=(1e-2, 3e-3, 3e-2), beta2=0.99,
        ),
        _long(
            "long_999", "Long, beta2 0.999", "the same, 10,000 steps: 10 memories of 0.999",
            steps=10000, rates=(1e-2, 3e-3, 3e-2), beta2=0.999,
        ),
        _gpt2(
            "gpt2_2000",
            "GPT-2, 2,000 steps",
            "the same GPT-2, 2,000 steps",
            width=64, tokens=64, seeds=8, steps=2000, warmup=100, rates=(3e-3, 1e-3, 1e-2), together=4,
        ),
    )
}  # fmt: skip
