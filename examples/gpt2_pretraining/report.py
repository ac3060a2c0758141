"""What a run shows: perplexities in its log, loss.png, and a sample of text."""

import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed


def with_perplexity(logs: dict[str, float]) -> dict[str, float]:
    """`logs` with the perplexity of every loss beside it, exp(nats per token)."""
    out = dict(logs)
    for loss, perplexity in (("loss", "perplexity"), ("eval_loss", "eval_perplexity")):
        if loss in logs:
            try:
                out[perplexity] = math.exp(logs[loss])
            except OverflowError:  # a loss above 709: the run diverged, and the log should still be written
                out[perplexity] = math.inf
    return out


def curve(log_history: list[dict[str, float]], key: str) -> tuple[list[float], list[float]]:
    """(steps, values) of the entries of `log_history` that have `key`."""
    points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
    return [step for step, _ in points], [value for _, value in points]


def plot(log_history: list[dict[str, float]], path: Path, title: str) -> None:
    """Draw the training and the validation loss into the PNG `path`."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*curve(log_history, "loss"), color="#9aa7b5", linewidth=1.2, label="train")
    steps, losses = curve(log_history, "eval_loss")
    label = f"validation (last: {losses[-1]:.3f})" if losses else "validation"
    axes.plot(steps, losses, color="#c0392b", linewidth=1.8, marker="o", markersize=4, label=label)
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, length: int, seed: int) -> str:
    """`length` tokens of text after `prompt`, drawn from the 40 likeliest at each position; the same for a seed."""
    set_seed(seed)
    model.eval()
    # A document starts after the end of another one, as in the packed blocks.
    ids = [tokenizer.eos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    ids = ids[-(model.config.n_positions - 1) :]
    length = min(length, model.config.n_positions - len(ids))
    inputs = torch.tensor([ids], device=model.device)
    with torch.no_grad():
        out = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=True,
            top_k=40,
            max_new_tokens=length,
            pad_token_id=tokenizer.eos_token_id,
            synced_gpus=False,  # under ZeRO 3 it would wait for the other processes, which have no part in this
        )
    return tokenizer.decode(out[0], skip_special_tokens=True)
