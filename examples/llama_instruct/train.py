"""Tune a LLaMA on instructions with TRL's SFTTrainer and optim="adopt": all of its weights, or LoRA.

python examples/llama_instruct/train.py --config examples/llama_instruct/configs/stdlib.yaml
"""

import contextlib
import gc
import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # `python FILE` finds the package `examples`

import torch
from accelerate import PartialState
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import TrainerState
from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config, get_quantization_config

import adopt_hf  # noqa: F401  registers optim="adopt"; must come before the parser is built
from adopt_hf.backends import cache
from adopt_hf.integrations.checkpoints import AlreadyFinishedError, MarkComplete, names_a_full_disk
from examples.llama_instruct import adapters, alone, data, pretrain, settings
from examples.llama_instruct.arguments import RecipeArguments
from examples.shared import cli, launch, plots, text
from examples.shared.errors import InputError, one_line

logger = logging.getLogger("llama_instruct")
TRACES = ("checkpoint-*", adapters.RUN, "*.safetensors", launch.PICTURE)


def base_model(recipe: RecipeArguments, args: SFTConfig, model_args: ModelConfig) -> str:
    """Return the model to start from: the one that is named, or the small LLaMA, which is pretrained if necessary."""
    name = model_args.model_name_or_path
    if name is not None:
        return str(Path(name).resolve()) if Path(name).is_dir() else name
    assert recipe.cache_dir is not None  # it has a default
    folder = pretrain.folder_for(Path(recipe.base_config), Path(recipe.cache_dir))
    made = folder.exists()
    if PartialState().is_main_process:
        launch.open_cache(folder.parent, kept=folder)
    alone.run("pretrain.py", "--config", recipe.base_config, "--output_dir", folder, *on_cpu(args), unless=folder)
    if not made and PartialState().is_main_process:
        cache.protect(folder)
    logger.info("the base model is in %s", folder)
    return str(folder)


def on_cpu(args: SFTConfig) -> list[str]:
    return ["--use_cpu"] if args.use_cpu else []


def load_tokenizer(base: str, args: SFTConfig) -> PreTrainedTokenizerBase:
    tokenizer = text.load_tokenizer(base)
    if args.chat_template_path is not None:
        tokenizer.chat_template = Path(args.chat_template_path).read_text(encoding="utf-8")
    if tokenizer.chat_template is None:
        raise InputError(f"the tokenizer of {base!r} has no chat template; pass --chat_template_path")
    if args.eos_token is not None:
        if args.eos_token not in tokenizer.get_vocab():
            raise InputError(f"eos_token {args.eos_token!r} is not in the vocabulary of {base!r}")
        tokenizer.eos_token = args.eos_token
    if tokenizer.eos_token is None:
        raise InputError(f"the tokenizer of {base!r} has no end-of-text token; pass --eos_token")
    return tokenizer


def check_same_run(checkpoint: Path, run: dict[str, object]) -> None:
    """Raise InputError if the run of `checkpoint` has another base model, adapter, optimizer or data set."""
    path = checkpoint.parent / adapters.RUN
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for key, value in json.loads(json.dumps(run)).items():
        if key in before and before[key] != value:
            raise InputError(
                f"checkpoint {checkpoint} is of another run: {key} is {before[key]} there and {value} here"
            )


def make_trainer(
    base: str, recipe: RecipeArguments, args: SFTConfig, model_args: ModelConfig, callbacks: list[TrainerCallback]
) -> SFTTrainer:
    tokenizer = load_tokenizer(base, args)
    check_context(base, args, model_args)
    instructions = data.load(recipe)
    for split, where in ((instructions.train, "training"), (instructions.validation, "validation")):
        if split is not None:
            data.warn_of_long(split, where, tokenizer, args)
    if instructions.validation is None:
        args.eval_strategy, args.eval_on_start = "no", False
    args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    } | (args.model_init_kwargs or {})
    try:
        return SFTTrainer(
            model=base,
            args=args,
            train_dataset=instructions.train.remove_columns("record"),
            eval_dataset=instructions.validation and instructions.validation.remove_columns("record"),
            processing_class=tokenizer,
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
            callbacks=callbacks,
        )
    except (
        ValueError,
        TypeError,
        RuntimeError,
        ImportError,
        OSError,
    ) as error:  # raised by TRL, PEFT and transformers for their own arguments
        raise InputError(one_line(error)) from error


def check_context(base: str, args: SFTConfig, model_args: ModelConfig) -> None:
    """Set `max_length` to the model's context if it is None. Raise InputError if it is longer than the context."""
    config = adapters.read_config(base, revision=model_args.model_revision)
    context = getattr(config, "max_position_embeddings", None)
    if args.max_length is None:
        args.max_length = context
    elif context is not None and args.max_length > context:
        raise InputError(f"max_length is {args.max_length}, and the context of {base!r} is {context} tokens")


def save(trainer: SFTTrainer) -> None:
    """Save the whole model or adapter with its tokenizer. All processes call this, because each may hold a part."""
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.accelerator.is_main_process:
        model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
        model.save_pretrained(trainer.args.output_dir, state_dict=weights)
        trainer.processing_class.save_pretrained(trainer.args.output_dir)
    trainer.accelerator.wait_for_everyone()


def summary(state: TrainerState, output_dir: Path) -> str:
    """Return a line with the held-out loss before and after training, if there is one."""
    held_out = plots.curve(state.log_history, "eval_loss")
    first, last = min(held_out, default=0), max(held_out, default=0)
    figures = f"held-out loss {held_out[first]:.4f} (step {first}) -> {held_out[last]:.4f}; " if held_out else ""
    return f"step {state.global_step}: {figures}model and curves ({launch.PICTURE}) in {output_dir}"


def tune(recipe: RecipeArguments, args: SFTConfig, model_args: ModelConfig) -> None:
    """Train, and save the model or the adapter in the output folder. Raise InputError before anything is written."""
    output_dir = Path(args.output_dir)
    checkpoint = launch.to_go_on_from(args, TRACES)
    base = base_model(recipe, args, model_args)
    config = adapters.read_config(base, revision=model_args.model_revision)
    for option in ("lora_target_modules", "lora_modules_to_save"):
        adapters.check_targets(config, option, getattr(model_args, option))
    lora = {name: value for name, value in vars(model_args).items() if "lora" in name or "dora" in name}
    this: dict[str, object] = {"base": base, "adapter": lora if model_args.use_peft else None}
    this |= {"optim": str(args.optim.value), "dataset": recipe.dataset_name}
    if checkpoint is not None:
        check_same_run(checkpoint, this)
        launch.check_not_finished(checkpoint, args)

    # The callback keeps this many checkpoints, and removes an old one only when the new one is complete.
    mark, args.save_total_limit = MarkComplete(args.save_total_limit), None
    trainer = make_trainer(base, recipe, args, model_args, [mark])
    launch.check_launch(trainer.accelerator, checkpoint)
    launch.take_folder(output_dir / adapters.RUN, json.dumps(this, indent=1) + "\n", new=checkpoint is None)
    trained = sum(getattr(p, "ds_numel", p.numel()) for p in trainer.model.parameters() if p.requires_grad)
    logger.info(
        "%s parameters trained; %s training records, %s",
        f"{trained:,}",
        f"{len(trainer.train_dataset):,}",
        launch.describe(args, checkpoint),
    )
    with names_a_full_disk(output_dir):
        with contextlib.suppress(AlreadyFinishedError):  # a run that was killed before it wrote its model
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        state = trainer.state
        if args.eval_strategy != "no" and state.global_step not in plots.curve(state.log_history, "eval_loss"):
            trainer.evaluate()
        trainer.save_state()
        save(trainer)
        if trainer.accelerator.is_main_process:
            title = f"{Path(base).name}, {args.optim.value}"
            plots.plot(state.log_history, output_dir / launch.PICTURE, title, of="on the responses")
            print(summary(state, output_dir))


def main() -> None:
    recipe, args, model_args = settings.parse(None, __doc__)
    launch.show_logs(logger.name)
    tune(recipe, args, model_args)
    # The next steps load the model again, so free the memory of the tuned one first.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if recipe.evaluate:
        alone.run("evaluate.py", args.output_dir, "--limit", recipe.questions, *on_cpu(args))
    if recipe.chat_prompt:
        alone.run("chat.py", args.output_dir, recipe.chat_prompt, *on_cpu(args))


if __name__ == "__main__":
    cli.run(main)
