"""The steps that both scripts share: prepare the model and its data, and save and show a finished run."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments, set_seed
from transformers.trainer_callback import TrainerState

from examples.gpt2_pretraining import checkpoints, data, report
from examples.gpt2_pretraining.settings import Settings
from examples.shared import launch, plots, restarts


@dataclass
class Recipe:
    """The input of a training loop. `checkpoint` is the one to go on from; None for a new run."""

    settings: Settings
    corpus: data.Corpus
    model: GPT2LMHeadModel
    checkpoint: Path | None

    @property
    def args(self) -> TrainingArguments:
        return self.settings.training


def prepare(settings: Settings, script: str) -> Recipe:
    """Check the output folder, load the data, and make the model from its seed. Raise InputError if that fails."""
    args = settings.training
    launch.show_logs("gpt2_pretraining", args.log_level in ("info", "detail", "debug"))
    checkpoint = checkpoints.choose(args, script)
    corpus = data.load(settings.data, batch_size=args.train_batch_size * args.world_size)
    config = GPT2Config(
        vocab_size=len(corpus.tokenizer),
        n_positions=settings.data.block_size,
        n_layer=settings.model.n_layer,
        n_head=settings.model.n_head,
        n_embd=settings.model.n_embd,
        resid_pdrop=settings.model.dropout,
        embd_pdrop=settings.model.dropout,
        attn_pdrop=settings.model.dropout,
        bos_token_id=corpus.tokenizer.bos_token_id,
        eos_token_id=corpus.tokenizer.eos_token_id,
    )
    if checkpoint is not None:
        checkpoints.check_model(checkpoint, config)
    set_seed(args.seed)
    model = GPT2LMHeadModel(config).to(getattr(torch, settings.model.dtype))
    # transformers does not find the loss by the name GPT2LMHeadModel. With None the Trainer also counts the first label
    # of a block, which is not predicted: losses and gradients would be too small by (block_size - 1) / block_size.
    model.loss_type = "ForCausalLM"
    if checkpoint is None:
        text = f"# {script}, all that differs from the defaults\n{yaml.safe_dump(settings.overrides, sort_keys=True)}"
        launch.take_folder(Path(args.output_dir) / checkpoints.RUN, text, new=True)
    else:
        restarts.note(Path(args.output_dir))
    logging.getLogger("gpt2_pretraining").info(
        "%s parameters; %s training and %s validation blocks of %d tokens; %s",
        f"{model.num_parameters():,}",
        f"{len(corpus.train):,}",
        f"{len(corpus.validation):,}",
        settings.data.block_size,
        launch.describe(args, checkpoint),
    )
    return Recipe(settings, corpus, model, checkpoint)


def finish(recipe: Recipe, accelerator: Accelerator, trained: torch.nn.Module, state: TrainerState) -> None:
    """Save the model, write loss.png, and print a sample and the last loss.

    All processes call this, because each may hold a part of `trained`, the model that the accelerator prepared.
    """
    args, settings = recipe.args, recipe.settings
    weights = accelerator.get_state_dict(trained)
    if accelerator.is_main_process:
        model = GPT2LMHeadModel(recipe.model.config)
        model.load_state_dict(weights)
        model.save_pretrained(args.output_dir)
        recipe.corpus.tokenizer.save_pretrained(args.output_dir)
        name = f"GPT-2 {model.num_parameters() / 1e6:.1f} M, {settings.data.dataset_name}, {args.optim.value}"
        plots.plot(state.log_history, Path(args.output_dir) / launch.PICTURE, name)
        if settings.data.sample_tokens:
            prompt, length = settings.data.sample_prompt, settings.data.sample_tokens
            text = report.sample(model.to(accelerator.device), recipe.corpus.tokenizer, prompt, length, args.seed)
            print(f"\n----- sample after {state.global_step} steps -----\n{text}\n-----")
        losses = plots.curve(state.log_history, "eval_loss")
        last = report.with_perplexity({"eval_loss": losses[max(losses)]})
        print(
            f"step {state.global_step}: validation loss {last['eval_loss']:.4f}, perplexity "
            f"{last['eval_perplexity']:.2f}; model and curves ({launch.PICTURE}) in {args.output_dir}"
        )
    accelerator.wait_for_everyone()
