"""Tune a LLaMA on instructions with TRL's SFTTrainer and optim="adopt": all of its weights, or LoRA.

python examples/llama_instruct/train.py --config examples/llama_instruct/configs/stdlib.yaml
"""

import contextlib
import gc
import json
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # `python FILE` finds the package `examples`

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback
from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config, get_quantization_config

import adopt_hf  # noqa: F401  registers optim="adopt"; must come before the parser is built
from adopt_hf.backends import cache
from adopt_hf.integrations.checkpoints import (
    AlreadyFinishedError,
    MarkComplete,
    check_layout,
    check_writable,
    is_finished,
    is_saved,
    names_a_full_disk,
    to_resume,
)
from examples.llama_instruct import adapters, alone, arguments, data, pretrain, report
from examples.llama_instruct.arguments import InputError, RecipeArguments

logger = logging.getLogger("llama_instruct")
TRACES = ("checkpoint-*", adapters.RUN, "*.safetensors", "loss.png")


def show_logs() -> None:
    """Show the INFO lines of this example and of adopt_hf, on the main process only."""
    logging.basicConfig(format="%(message)s", force=True)
    for name in (logger.name, "adopt_hf"):
        logging.getLogger(name).setLevel(logging.INFO if PartialState().is_main_process else logging.WARNING)


def base_model(recipe: RecipeArguments, args: SFTConfig, model_args: ModelConfig) -> str:
    """The model to start from: the one that is named, or the small LLaMA, which is pretrained if need be."""
    name = model_args.model_name_or_path
    if name is not None:
        return str(Path(name).resolve()) if Path(name).is_dir() else name
    folder = pretrain.folder_for(Path(recipe.base_config), Path(recipe.cache_dir or arguments.cache_dir()))
    made = folder.exists()
    if PartialState().is_main_process:
        check_cache(folder)
    alone.run("pretrain.py", "--config", recipe.base_config, "--output_dir", folder, *on_cpu(args), unless=folder)
    if not made and PartialState().is_main_process:
        cache.protect(folder)
    logger.info("the base model is in %s", folder)
    return str(folder)


def check_cache(folder: Path) -> None:
    """Raise InputError if another user could have changed the base model that is kept in `folder`, or can."""
    try:
        cache.create(folder.parent)
    except RuntimeError as error:
        raise InputError(f"cache_dir {folder.parent} cannot be used: {error.__cause__}") from error
    reason = cache.why_not_all_trusted(folder) if folder.exists() else cache.why_not_trusted(folder.parent)
    if reason is not None:
        raise InputError(f"the base model in {folder} cannot be trusted: {reason}; --cache_dir names another folder")


def on_cpu(args: SFTConfig) -> list[str]:
    return ["--use_cpu"] if args.use_cpu else []


def load_tokenizer(base: str, args: SFTConfig) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise InputError(f"the tokenizer of {base!r} cannot be loaded: {' '.join(str(error).split())}") from error
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
    """Raise InputError if `checkpoint` is of a run with another base model or another adapter."""
    path = checkpoint.parent / adapters.RUN
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for key, value in json.loads(json.dumps(run)).items():
        if key in before and before[key] != value:
            raise InputError(f"checkpoint {checkpoint} is of another run: {key} is {before[key]} there, {value} here")


def check_not_done(checkpoint: Path, args: SFTConfig) -> None:
    """Raise AlreadyFinishedError if no step is left to do after `checkpoint`, and what a run leaves is written."""
    output_dir = Path(args.output_dir)
    if is_finished(checkpoint, args) and is_saved(output_dir, checkpoint, last="loss.png"):
        raise AlreadyFinishedError(
            f"finished already: the run in {output_dir} has done all its steps ({checkpoint.name}), and its model is "
            "there; ask for more by --max_steps or --num_train_epochs, or choose another --output_dir"
        )


def take_folder(output_dir: Path, run: dict[str, object], new: bool) -> None:
    """Note in `output_dir` what this run is, for later runs and for evaluate.py."""
    PartialState().wait_for_everyone()  # all have looked before the first one writes
    if PartialState().is_main_process:
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            with open(output_dir / adapters.RUN, "x" if new else "w", encoding="utf-8") as file:
                file.write(json.dumps(run, indent=1) + "\n")
        except FileExistsError:
            raise InputError(f"output_dir {output_dir} has just been taken by another run") from None
        except OSError as error:
            raise InputError(f"output_dir {output_dir} cannot be written: {error.strerror}") from None


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
    ) as error:  # what TRL, PEFT and transformers say of their own arguments
        raise InputError(" ".join(str(error).split())) from error


def check_context(base: str, args: SFTConfig, model_args: ModelConfig) -> None:
    """Cut what is longer than the model's context, if `max_length` says nothing; raise InputError if it says more."""
    config = adapters.read_config(base, revision=model_args.model_revision)
    context = getattr(config, "max_position_embeddings", None)
    if args.max_length is None:
        args.max_length = context
    elif context is not None and args.max_length > context:
        raise InputError(f"max_length is {args.max_length}, and the context of {base!r} is {context} tokens")


def check_launch(trainer: SFTTrainer, checkpoint: Path | None) -> None:
    """Raise InputError if this is another launch mode than was asked for, or than the checkpoint's to go on from."""
    mode = trainer.accelerator.distributed_type
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and mode != DistributedType.FSDP:
        raise InputError(
            "FSDP was asked for, but accelerate leaves it off on CPUs; take ddp.yaml or a DeepSpeed config"
        )
    if checkpoint is not None:
        try:
            check_layout(checkpoint)
        except ValueError as error:
            raise InputError(str(error)) from None


def save(trainer: SFTTrainer) -> None:
    """Save the model or the adapter, whole, with its tokenizer; for all processes: each may hold a part of it."""
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.accelerator.is_main_process:
        model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
        model.save_pretrained(trainer.args.output_dir, state_dict=weights)
        trainer.processing_class.save_pretrained(trainer.args.output_dir)
    trainer.accelerator.wait_for_everyone()


def tune(recipe: RecipeArguments, args: SFTConfig, model_args: ModelConfig) -> None:
    """Train, and leave the model or the adapter in the output folder. Raises InputError before it is written to."""
    output_dir = Path(args.output_dir)
    try:
        checkpoint = to_resume(output_dir, args.resume_from_checkpoint, TRACES)
        check_writable(output_dir)
    except ValueError as error:
        raise InputError(str(error)) from None
    base = base_model(recipe, args, model_args)
    config = adapters.read_config(base, revision=model_args.model_revision)
    for option in ("lora_target_modules", "lora_modules_to_save"):
        adapters.check_targets(config, option, getattr(model_args, option))
    lora = {name: value for name, value in vars(model_args).items() if "lora" in name or "dora" in name}
    this: dict[str, object] = {"base": base, "adapter": lora if model_args.use_peft else None}
    this |= {"optim": str(args.optim.value), "dataset": recipe.dataset_name}
    if checkpoint is not None:
        check_same_run(checkpoint, this)
        check_not_done(checkpoint, args)

    # The callback keeps as many, but does not remove an old one before the new one is complete.
    mark, args.save_total_limit = MarkComplete(args.save_total_limit), None
    trainer = make_trainer(base, recipe, args, model_args, [mark])
    check_launch(trainer, checkpoint)
    take_folder(output_dir, this, new=checkpoint is None)
    trained = sum(getattr(p, "ds_numel", p.numel()) for p in report.trainable(trainer.model))
    logger.info(
        "%s parameters trained; %s training records, %d sequences a step in %d process(es)%s",
        f"{trained:,}",
        f"{len(trainer.train_dataset):,}",
        args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        args.world_size,
        f"; going on from {checkpoint}" if checkpoint else "",
    )
    with names_a_full_disk(output_dir):
        with contextlib.suppress(AlreadyFinishedError):  # of a run that was killed before it had written its model
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        state = trainer.state
        if args.eval_strategy != "no" and state.global_step not in report.losses(state.log_history, "eval_loss"):
            trainer.evaluate()
        trainer.save_state()
        save(trainer)
        if trainer.accelerator.is_main_process:
            report.plot(state.log_history, output_dir / "loss.png", f"{Path(base).name}, {args.optim.value}")
            print(report.summary(state, output_dir))


def main() -> None:
    recipe, args, model_args = arguments.parse(None, __doc__)
    show_logs()
    tune(recipe, args, model_args)
    # What follows loads the model anew: the memory of the one that was tuned is given back first.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if recipe.evaluate:
        alone.run("evaluate.py", args.output_dir, "--limit", recipe.questions, *on_cpu(args))
    if recipe.chat_prompt:
        alone.run("chat.py", args.output_dir, recipe.chat_prompt, *on_cpu(args))


if __name__ == "__main__":
    arguments.run(main)
