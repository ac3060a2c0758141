"""Show a run: the loss in the progress bar, perplexities in the log, and a sample of text."""

import math
import sys
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProgressCallback, Trainer, set_seed


def with_perplexity(logs: dict[str, float]) -> dict[str, float]:
    """Return `logs` with the perplexity of every loss added: exp(nats per token)."""
    out = dict(logs)
    for loss, perplexity in (("loss", "perplexity"), ("eval_loss", "eval_perplexity")):
        if loss in logs:
            try:
                out[perplexity] = math.exp(logs[loss])
            except OverflowError:  # a loss above 709: the run has diverged, and its log is written all the same
                out[perplexity] = math.inf
    return out


class Lines:
    """The loss next to the progress bar, and on a line of its own at each evaluation and each tenth of the run."""

    def __init__(self) -> None:
        self.last = 0  # the step of the last line

    def show(self, bar: tqdm, logs: dict[str, float], step: int) -> None:
        """Show a log entry."""
        if "loss" in logs:
            bar.set_postfix_str(f"loss {logs['loss']:.3f}")
        name = "eval_loss" if "eval_loss" in logs else "loss"
        if name in logs and (name == "eval_loss" or step - self.last >= bar.total / 10):
            kind = "validation" if name == "eval_loss" else "training"
            bar.write(f"step {step}: {kind} loss {logs[name]:.3f}", file=sys.stderr)
            self.last = step


class Bar(ProgressCallback):
    """The Trainer's progress bar, which shows `Lines` instead of a dictionary for each log entry."""

    def __init__(self) -> None:
        super().__init__()
        self.lines = Lines()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.training_bar is not None:
            self.lines.show(self.training_bar, logs, state.global_step)


def use_bar(trainer: Trainer) -> None:
    """Replace the progress bar of transformers by `Bar`, if `trainer` has it."""
    if any(type(callback) is ProgressCallback for callback in trainer.callback_handler.callbacks):
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(Bar())


def sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, length: int, seed: int) -> str:
    """Return `length` tokens of text after `prompt`, each drawn from the 40 likeliest. Equal seeds give equal texts."""
    set_seed(seed)
    model.eval()
    # In the packed blocks a document starts after the end of another one.
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
            synced_gpus=False,  # under ZeRO 3 it would wait for the other processes, which do not generate
        )
    return tokenizer.decode(out[0], skip_special_tokens=True)
