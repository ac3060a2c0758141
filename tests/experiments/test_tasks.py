"""The tasks of the protocol: stacked models are the originals, seeds do not meet, and every task trains."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from experiments.defaults import instructions, language, stacked
from experiments.defaults.tasks import TASKS
from experiments.defaults.training import Task, train


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """A short text instead of the library, and a LLaMA that is not pretrained."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(language.VOCABULARY, (2, 40_000), generator=generator)
    monkeypatch.setattr(language, "library", lambda: (text[0], text[1]))
    monkeypatch.setattr(language, "HELD_OUT_BLOCKS", 8)
    ids = torch.randint(language.VOCABULARY, (24, instructions.RECORD), generator=generator)
    labels = ids.masked_fill(torch.arange(instructions.RECORD) < 50, -100)
    labels[::2, 70:] = -100  # some are shorter
    records = {"train": ids[:16], "train_labels": labels[:16], "held_out": ids[16:], "held_out_labels": labels[16:]}
    base = instructions._llama_weights(0)
    monkeypatch.setattr(instructions, "instructed", lambda: (base, records))


def perturbed(models):
    """These models with all weights away from their special first values."""
    torch.manual_seed(1)
    for model in models:
        for p in model.parameters():
            p.data += 0.05 * torch.randn_like(p)
    return models, stacked.stack([{k: p.detach() for k, p in m.named_parameters()} for m in models])


def test_gpt2_is_the_original():
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 64, "n_positions": 16, "n_layer": 2, "n_head": 4, "n_embd": 32}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
    models, weights = perturbed([GPT2LMHeadModel(config).eval() for _ in range(2)])
    ids = torch.randint(64, (2, 3, 16))
    for model in models:
        model.loss_type = "ForCausalLM"
    wanted = torch.stack([m(input_ids=i, labels=i).loss for m, i in zip(models, ids, strict=True)])
    torch.testing.assert_close(stacked.gpt2_loss(weights, ids, heads=4), wanted)


def test_llama_is_the_original_and_adapters_add_to_its_layers():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, bos_token_id=0, eos_token_id=0)
    models, weights = perturbed([LlamaForCausalLM(config).eval() for _ in range(2)])
    ids = torch.randint(64, (2, 3, 16))
    labels = ids.clone()
    labels[:, :, :5], labels[:, 0, 12:] = -100, -100

    def losses():
        return torch.stack([m(input_ids=i, labels=y).loss for m, i, y in zip(models, ids, labels, strict=True)])

    torch.testing.assert_close(stacked.llama_loss(weights, ids, labels, heads=4), losses())
    name = "model.layers.1.mlp.up_proj"
    a, b = torch.randn(2, 4, 32), torch.randn(2, 48, 4)
    for i, model in enumerate(models):
        model.get_submodule(name).weight.data += 0.5 * b[i] @ a[i]
    adapted = {**weights, f"{name}.lora_A": a, f"{name}.lora_B": b}
    torch.testing.assert_close(stacked.llama_loss(adapted, ids, labels, heads=4, scale=0.5), losses())


def test_one_base_for_all_seeds_is_the_same_as_a_copy_for_each():
    base, adapters = instructions.instructed()[0], stacked.stack([instructions._adapters(seed) for seed in (0, 1)])
    adapters = {name: weight + 0.02 for name, weight in adapters.items()}
    ids = torch.randint(language.VOCABULARY, (2, 3, 20))
    one = {name: weight[None] for name, weight in base.items()}
    copies = stacked.stack([base, base])
    found = [stacked.llama_loss({**w, **adapters}, ids, ids, heads=4, scale=instructions.SCALE) for w in (one, copies)]
    torch.testing.assert_close(*found)


def test_the_vision_transformer_is_the_original():
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = ViTConfig(**sizes, image_size=8, patch_size=2, num_channels=1, num_labels=10)
    models, weights = perturbed([ViTForImageClassification(config).eval() for _ in range(2)])
    pixels = torch.randn(2, 3, 1, 8, 8)
    wanted = torch.stack([m(pixel_values=x).logits for m, x in zip(models, pixels, strict=True)])
    assert wanted.std() > 0.1
    torch.testing.assert_close(stacked.vit(weights, pixels, heads=2), wanted)


def test_the_perceptron_and_the_vae_are_the_originals():
    from experiments.paper.mlp import MLPConfig, MLPForImageClassification
    from experiments.paper.vae import VAE

    config = MLPConfig(image_size=8, hidden_size=16, num_labels=10)
    models, weights = perturbed([MLPForImageClassification(config) for _ in range(2)])
    pixels = torch.rand(2, 5, 64)
    wanted = torch.stack([m(x.view(5, 1, 8, 8)).logits for m, x in zip(models, pixels, strict=True)])
    torch.testing.assert_close(stacked.perceptron(weights, pixels), wanted)

    models, weights = perturbed([VAE(64, 16, 4)])
    torch.manual_seed(3)
    wanted = -models[0](pixels[0], 1)
    torch.manual_seed(3)
    noise = torch.randn(1, 5, 4)
    torch.testing.assert_close(stacked.vae_bound(weights, pixels[:1], noise), wanted)


def test_the_loss_of_tokens_without_a_label_does_not_count():
    logits, labels = torch.randn(2, 3, 7, 11), torch.randint(11, (2, 3, 7))
    labels[1, :, 2:] = -100
    wanted = [
        cross_entropy(x.flatten(0, 1), y.flatten(), ignore_index=-100) for x, y in zip(logits, labels, strict=True)
    ]
    torch.testing.assert_close(stacked.cross_entropy(logits, labels), torch.stack(wanted))


@pytest.mark.parametrize("name", TASKS)
def test_a_task_trains_two_seeds_at_once_as_it_trains_them_alone(name):
    task = TASKS[name]

    def run(seeds):
        return train(task, seeds, lambda groups: torch.optim.SGD(groups), 0.02, 3, warmup=1)

    both = run([0, 1])
    assert all(map(math.isfinite, both))
    assert both == pytest.approx([*run([0]), *run([1])], rel=2e-4)
    assert both[0] != both[1]
    assert both == run([0, 1])


def plain(**settings) -> Task:
    """One weight matrix and one bias, whose gradients are `pull` times the seed."""

    def loss(w, pull):
        return (w["matrix"].flatten(1).sum(1) + w["bias"].sum(1)) * pull

    defaults = {
        "name": "plain",
        "title": "",
        "about": "",
        "seeds": 2,
        "steps": 1,
        "rates": (1.0,),
        "weights": lambda seed: {"matrix": torch.ones(2, 2), "bias": torch.ones(2)},
        "batches": lambda seed: iter([(torch.tensor(float(seed)),)] * 5),
        "loss": loss,
        "evaluate": lambda w: w["matrix"][:, 0, 0] * 100 + w["bias"][:, 0],
    }
    return Task(**defaults | settings)


def test_the_norm_is_clipped_for_each_seed():
    # The gradient of seed 10 is 10 in 6 places, of norm 24.5, and becomes 1 / sqrt(6) in each; that of 0.1 stays.
    weights = {}
    task = plain(
        clip=1.0,
        batches=lambda seed: iter([(torch.tensor([0.1, 10.0][seed]),)]),
        evaluate=lambda w: weights.update(w) or torch.zeros(2),
    )
    train(task, [0, 1], torch.optim.SGD, 1.0, 1)
    assert weights["bias"][0].tolist() == pytest.approx([0.9, 0.9])
    assert weights["bias"][1].tolist() == pytest.approx([1 - 1 / math.sqrt(6)] * 2, rel=1e-5)


def test_only_matrices_decay_and_a_weight_may_have_a_rate_of_its_own():
    groups = []

    def make(given):
        groups.extend(given)
        return torch.optim.SGD(given)

    train(plain(decay=0.1, ratio=lambda name: 16.0 if name == "bias" else 1.0), [0, 1], make, 0.5, 1)
    assert sorted((group["weight_decay"], group["params"][0].shape[1]) for group in groups) == [(0.0, 2), (0.1, 4)]
    assert [group["lr"] / 0.5 for group in sorted(groups, key=lambda group: group["weight_decay"])] == [16.0, 1.0]


def test_the_schedules_rise_and_fall_as_transformers_have_them():
    from transformers import get_scheduler

    probe = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler("cosine_with_min_lr", probe, 10, 50, scheduler_specific_kwargs={"min_lr": 0.1})
    task = plain(warmup=10, floor=0.1)
    for step in range(50):
        assert task.rate(step, 50) == pytest.approx(theirs.get_last_lr()[0])
        probe.step()
        theirs.step()
    assert task.rate(0, 50, warmup=0) == 1.0
    assert plain(floor=None).rate(3, 50) == 0.5


def test_what_diverges_is_infinite():
    task = plain(evaluate=lambda w: torch.tensor([1.0, math.nan]))
    assert train(task, [0, 1], torch.optim.SGD, 1.0, 1) == [1.0, math.inf]


def test_records_have_labels_on_the_response_only_and_fit():
    from experiments.defaults.instructions import _record_batches

    ids, labels = next(_record_batches(0))
    assert ids.shape == labels.shape == (8, instructions.RECORD)
    seen = labels != -100
    assert torch.equal(ids[seen], labels[seen])
