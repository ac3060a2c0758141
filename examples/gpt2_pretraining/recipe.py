"""What both scripts share: from settings to a model and its data, and from a finished run to what is shown of it."""

import logging
from dataclasses import dataclass
from pathlib import Path

import checkpoints
import data
import report
import yaml
from accelerate import PartialState
from arguments import Settings
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments, set_seed
from transformers.trainer_callback import TrainerState


@dataclass
class Recipe:
    """Everything a training loop needs. `checkpoint` is where it goes on from, None at the beginning."""

    settings: Settings
    corpus: data.Corpus
    model: GPT2LMHeadModel
    checkpoint: Path | None

    @property
    def args(self) -> TrainingArguments:
        return self.settings.training


def show_logs() -> None:
    """Send the INFO lines of this example and of adopt_hf to stderr, on the main process only."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("gpt2_pretraining", "adopt_hf"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO if PartialState().is_main_process else logging.WARNING)
        logger.handlers, logger.propagate = [handler], False


def prepare(settings: Settings, script: str) -> Recipe:
    """Check the output folder, load the data, build the model from its seed. Raises InputError."""
    show_logs()
    args = settings.training
    output_dir = Path(args.output_dir)
    checkpoint = checkpoints.choose(output_dir, args.resume_from_checkpoint, script)
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
    model = GPT2LMHeadModel(config)
    # GPT2LMHeadModel's name does not tell transformers which loss it has. Left at None, the Trainer counts a block's
    # first label too, which is not predicted, and every loss and gradient is (block_size - 1) / block_size of the true.
    model.loss_type = "ForCausalLM"
    # Every process has looked at the folder before the first one marks it as taken.
    PartialState().wait_for_everyone()
    if checkpoint is None and PartialState().is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(settings.overrides, sort_keys=True)
        (output_dir / checkpoints.RUN).write_text(f"# {script}, all that differs from the defaults\n{text}")
    sequences = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    logging.getLogger("gpt2_pretraining").info(
        "%s parameters; %s training and %s validation blocks of %d tokens; %d sequences a step in %d process(es)%s",
        f"{model.num_parameters():,}",
        f"{len(corpus.train):,}",
        f"{len(corpus.validation):,}",
        settings.data.block_size,
        sequences,
        args.world_size,
        f"; going on from {checkpoint}" if checkpoint else "",
    )
    return Recipe(settings, corpus, model, checkpoint)


def finish(recipe: Recipe, model: GPT2LMHeadModel, state: TrainerState) -> None:
    """Write loss.png and print a sample and the last figures. For the main process, after the model was saved."""
    args, settings = recipe.args, recipe.settings
    picture = Path(args.output_dir) / "loss.png"
    name = f"GPT-2 {recipe.model.num_parameters() / 1e6:.1f} M, {settings.data.dataset_name}, {args.optim.value}"
    report.plot(state.log_history, picture, name)
    if settings.data.sample_tokens:
        prompt = settings.data.sample_prompt
        text = report.sample(model, recipe.corpus.tokenizer, prompt, settings.data.sample_tokens, args.seed)
        print(f"\n----- sample after {state.global_step} steps -----\n{text}\n-----")
    last = report.with_perplexity({"eval_loss": report.curve(state.log_history, "eval_loss")[1][-1]})
    print(
        f"step {state.global_step}: validation loss {last['eval_loss']:.4f}, perplexity {last['eval_perplexity']:.2f}; "
        f"model and curves ({picture.name}) in {args.output_dir}"
    )
