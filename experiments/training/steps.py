"""Whole training steps of a GPT-2 on random tokens: forward, backward, optimizer."""

import gc
import random
from functools import partial
from typing import Any

import torch

from experiments.step import clock, temporaries
from experiments.step.peers import BASELINE, OURS, PEERS, searching
from experiments.step.rounds import interleave, quartiles, summary
from experiments.step.shapes import GPT2_124M, GPT2_TOY
from experiments.step.stepper import WARMUP

MODELS = {"gpt2-124m": GPT2_124M, "gpt2-toy": GPT2_TOY}


class Training:
    """A model of its own, the same for every peer, and its optimizer."""

    def __init__(
        self, peer: str, model: str, batch: int, length: int, device: str, seed: int, peers_path: str | None
    ) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        size = MODELS[model]
        config = GPT2Config(
            n_layer=size.layers,
            n_embd=size.width,
            n_head=size.heads,
            vocab_size=size.vocabulary,
            n_positions=size.positions,
            bos_token_id=0,
            eos_token_id=0,
        )
        torch.manual_seed(seed)
        self.model = GPT2LMHeadModel(config).to(device).train()
        self.tokens = torch.randint(size.vocabulary, (batch, length), device=device)
        # On a GPU as people train there; a CPU gains nothing from it without instructions of its own for bf16.
        self.autocast = torch.autocast("cuda", torch.bfloat16, enabled=device == "cuda")
        with searching(peers_path):
            self.optimizer = PEERS[peer].make(list(self.model.parameters()))

    def step(self) -> None:
        with self.autocast:
            loss = self.model(input_ids=self.tokens, labels=self.tokens).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def speed(
    peers: list[str],
    model: str,
    batch: int,
    length: int,
    device: str,
    threads: int | None,
    rounds: int,
    seed: int,
    peers_path: str | None,
) -> dict[str, Any]:
    """Interleaved steps of all `peers`, each with its own model. Returns the case, with `rows` by peer."""
    if threads is not None:
        torch.set_num_threads(threads)
    time_step = clock.of(device)
    drawn = random.Random(seed).sample(peers, len(peers))  # where a tensor comes to lie depends on those made before it
    trainings = {peer: Training(peer, model, batch, length, device, seed, peers_path) for peer in drawn}
    steps = {peer: partial(time_step, training.step) for peer, training in trainings.items()}
    done, errors = interleave(steps, rounds, WARMUP, seed)
    rows: dict[str, dict[str, Any]] = {}
    for peer in peers:
        rows[peer] = {"why": errors.get(peer, "")}
        if not rows[peer]["why"]:
            rows[peer].update(summary(done, peer, BASELINE, OURS, floor=""))
            rows[peer]["tokens_per_s"] = quartiles([batch * length / (r[peer].ms / 1e3) for r in done])
    return {"threads": torch.get_num_threads(), "rows": rows}


def peak(
    peer: str,
    model: str,
    batch: int,
    length: int,
    device: str,
    threads: int | None,
    seed: int,
    peers_path: str | None,
) -> int:
    """Bytes at the peak of the third step: model, gradients, states, activations, temporaries.

    On a CPU it is by how much the process grew, and wants a fresh one with `temporaries.ENVIRONMENT`.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    # What a first step loads, libraries and modules, is not the training's.
    Training(peer, "gpt2-toy", 1, 8, device, seed, peers_path).step()
    gc.collect()
    before = temporaries.status("VmRSS") if device == "cpu" else 0
    training = Training(peer, model, batch, length, device, seed, peers_path)
    for _ in range(WARMUP):
        training.step()
    if device == "cpu":
        temporaries.reset_peak()
        training.step()
        return temporaries.status("VmHWM") - before
    torch.cuda.reset_peak_memory_stats()
    training.step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()
