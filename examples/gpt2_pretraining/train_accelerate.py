"""Pretrain a small GPT-2 like train.py, in a plain Accelerate loop that you can change.

python examples/gpt2_pretraining/train_accelerate.py --config examples/gpt2_pretraining/configs/stdlib.yaml

The script reads the same YAML files. It uses the fields of TrainingArguments in HONOURED; setting another is an error.
"""

import math
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # `python FILE` finds the package `examples`

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import GPT2LMHeadModel, Trainer, default_data_collator, get_scheduler
from transformers.trainer_callback import TrainerState

import adopt_hf  # registers optim="adopt"; must come before the parser is built
from adopt_hf.integrations.checkpoints import forget_later, mark, names_a_full_disk, rotate
from examples.gpt2_pretraining import checkpoints, report, settings
from examples.gpt2_pretraining import recipe as steps
from examples.shared import cli, launch, plots
from examples.shared.errors import InputError

HONOURED = frozenset(
    """
    output_dir resume_from_checkpoint per_device_train_batch_size per_device_eval_batch_size
    gradient_accumulation_steps num_train_epochs max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs
    warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm bf16 fp16 tf32
    log_level logging_strategy logging_steps eval_strategy eval_steps save_strategy save_steps save_total_limit
    report_to run_name disable_tqdm seed data_seed use_cpu ddp_backend ddp_timeout dataloader_num_workers
    dataloader_pin_memory
    """.split()  # noqa: SIM905  as a list it is forty lines
)


class Loop:
    """The training loop with its model, optimizer, schedule, data, and the TrainerState of the Trainer."""

    def __init__(self, recipe: steps.Recipe):
        args = self.args = recipe.args
        self.recipe = recipe
        self.output_dir = Path(args.output_dir)
        self.lines = report.Lines()
        self.accelerator = Accelerator(
            gradient_accumulation_plugin=GradientAccumulationPlugin(args.gradient_accumulation_steps),
            deepspeed_plugin=args.deepspeed_plugin,  # None without DeepSpeed
            mixed_precision="bf16" if args.bf16 else "fp16" if args.fp16 else None,  # None: that of the launcher
            log_with=args.report_to or None,
            project_config=ProjectConfiguration(str(self.output_dir), logging_dir=str(self.output_dir / "runs")),
            # The order of the data is that of the Trainer: a permutation seeded by seed + epoch.
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=args.data_seed),
        )
        launch.check_launch(self.accelerator, recipe.checkpoint)
        optimizer_cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
        optimizer = optimizer_cls(adopt_hf.param_groups(recipe.model, args.weight_decay), **kwargs)
        loading: dict[str, Any] = {
            "collate_fn": default_data_collator,
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory,
        }
        self.model, self.optimizer, self.train_loader, self.eval_loader = self.accelerator.prepare(
            recipe.model,
            optimizer,
            DataLoader(recipe.corpus.train, args.per_device_train_batch_size, shuffle=True, **loading),
            DataLoader(recipe.corpus.validation, args.per_device_eval_batch_size, **loading),
        )
        self.steps_per_epoch = math.ceil(len(self.train_loader) / args.gradient_accumulation_steps)
        self.max_steps = args.max_steps
        if self.max_steps <= 0:
            self.max_steps = math.ceil(args.num_train_epochs * self.steps_per_epoch)
        # The schedule is not prepared, because a prepared one takes a step for every process.
        self.schedule = get_scheduler(
            args.lr_scheduler_type,
            optimizer=self.optimizer,
            num_warmup_steps=args.get_warmup_steps(self.max_steps),
            num_training_steps=self.max_steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )
        self.accelerator.register_for_checkpointing(self.schedule)
        self.accelerator.register_save_state_pre_hook(self.save_weights)
        self.accelerator.register_load_state_pre_hook(self.load_weights)

        self.state = TrainerState()
        if recipe.checkpoint is not None:
            self.accelerator.load_state(str(recipe.checkpoint))
            self.state = checkpoints.read_state(recipe.checkpoint)
            if self.accelerator.is_main_process:
                forget_later(self.output_dir, self.state.global_step)
        self.state.max_steps = self.max_steps
        self.state.compute_steps(args, self.max_steps)

    # ----- training -----

    def train(self) -> None:
        """Train up to `max_steps`, and evaluate and save at the steps that the settings name."""
        self.accelerator.init_trackers(self.args.run_name or "gpt2_pretraining", config=self.tracked_settings())
        loss_sum, steps_summed = torch.zeros((), device=self.accelerator.device), 0
        with self.bar("training", self.max_steps, self.state.global_step) as bar:
            while self.state.global_step < self.max_steps:
                for loss, window in self.micro_batches():
                    loss_sum += loss / window
                    if not self.accelerator.sync_gradients:
                        continue
                    logs = self.update()
                    steps_summed += 1
                    bar.update()
                    step = self.state.global_step
                    if step % self.state.logging_steps == 0:
                        mean = self.accelerator.reduce(loss_sum, "mean").item() / steps_summed
                        self.log({"loss": mean, **logs}, bar)
                        loss_sum, steps_summed = torch.zeros_like(loss_sum), 0
                    if self.args.eval_strategy == "steps" and step % self.state.eval_steps == 0:
                        self.evaluate(bar)
                    if self.args.save_strategy == "steps" and step % self.state.save_steps == 0:
                        self.save_checkpoint()
                    if step == self.max_steps:
                        break
            if self.state.global_step not in plots.curve(self.state.log_history, "eval_loss"):
                self.evaluate(bar)
            last_saved = self.output_dir / f"checkpoint-{self.state.global_step}"
            if self.args.save_strategy == "steps" and not last_saved.exists():
                self.save_checkpoint()

    def micro_batches(self) -> Iterator[tuple[torch.Tensor, int]]:
        """Run forward and backward over the rest of the epoch, one micro-batch at a time.

        Yield the loss, and the number of micro-batches in the step, inside `accumulate`. The gradients are complete and
        equal on all processes when `accelerator.sync_gradients` is true.
        """
        accumulation, batches = self.args.gradient_accumulation_steps, len(self.train_loader)
        epoch, steps_done = divmod(self.state.global_step, self.steps_per_epoch)
        done = steps_done * accumulation
        self.train_loader.set_epoch(epoch)
        loader = self.accelerator.skip_first_batches(self.train_loader, done) if done else self.train_loader
        self.model.train()
        for index, batch in enumerate(without_touching_the_seed(loader), start=done):
            # The last step of an epoch can have fewer micro-batches, and backward() divides by the usual number.
            window = min(accumulation, batches - index // accumulation * accumulation)
            with self.accelerator.accumulate(self.model):
                loss = self.model(**batch).loss
                self.accelerator.backward(loss * (accumulation / window))
                yield loss.detach(), window

    def update(self) -> dict[str, float]:
        """Clip the gradients, update the weights, and count the step. Return the log entries of the step."""
        logs = {"learning_rate": self.schedule.get_last_lr()[0]}
        if self.args.max_grad_norm > 0:
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
            if norm is not None:  # ZeRO 0 in fp32 clips, but does not return the norm
                logs["grad_norm"] = float(norm)
        self.optimizer.step()
        if not self.optimizer.step_was_skipped:  # an overflow in fp16
            self.schedule.step()
        self.optimizer.zero_grad()
        self.state.global_step += 1
        epochs, steps = divmod(self.state.global_step, self.steps_per_epoch)
        self.state.epoch = epochs + steps * self.args.gradient_accumulation_steps / len(self.train_loader)
        return logs

    @torch.no_grad()
    def evaluate(self, bar: tqdm) -> None:
        """Log the mean loss of the validation blocks."""
        self.model.eval()
        losses = []
        with self.bar("validation", len(self.eval_loader)) as progress:
            for batch in without_touching_the_seed(self.eval_loader):
                loss = self.model(**batch).loss.repeat(len(batch["input_ids"]))
                losses.append(self.accelerator.gather_for_metrics(loss))
                progress.update()
        self.log({"eval_loss": torch.cat(losses).mean().item()}, bar)
        self.model.train()

    # ----- logs and checkpoints -----

    def log(self, logs: dict[str, float], bar: tqdm) -> None:
        """Write an entry to the history, the trackers and the terminal, with the names that the Trainer uses."""
        logs = report.with_perplexity(logs) | {"epoch": self.state.epoch or 0.0}
        self.state.log_history.append({**logs, "step": self.state.global_step})
        tagged = {
            f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}": value
            for key, value in logs.items()
        }
        self.accelerator.log(tagged, step=self.state.global_step)
        if not bar.disable:
            self.lines.show(bar, logs, self.state.global_step)

    def save_checkpoint(self) -> None:
        """Write checkpoint-<step>. The folder gets this name when the checkpoint is complete."""
        accelerator, final = self.accelerator, self.output_dir / f"checkpoint-{self.state.global_step}"
        unfinished = self.output_dir / f"unfinished-{final.name}"
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(unfinished))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self.recipe.model.config.save_pretrained(unfinished)
            self.recipe.corpus.tokenizer.save_pretrained(unfinished)
            self.state.save_to_json(str(unfinished / checkpoints.STATE))
            mark(unfinished, self.state.global_step, self.optimizer)
            if final.exists():  # of a run that was resumed from an older checkpoint
                shutil.rmtree(final)
            unfinished.rename(final)
            rotate(self.output_dir, self.args.save_total_limit)
        accelerator.wait_for_everyone()

    def save_weights(self, models: list[Any], weights: list[Any], folder: str) -> None:
        """Save the unwrapped model, which `from_pretrained` can read and any number of processes can resume."""
        if weights:  # empty if the weights are sharded, and accelerate saves them
            weights.clear()
            if self.accelerator.is_main_process:
                self.accelerator.unwrap_model(models[0]).save_pretrained(folder)

    def load_weights(self, models: list[Any], folder: str) -> None:
        """Load the weights that `save_weights` saved."""
        while models:
            bare = self.accelerator.unwrap_model(models.pop())
            bare.load_state_dict(GPT2LMHeadModel.from_pretrained(folder).state_dict())

    def finish(self) -> None:
        """Save the model and the history in the output folder, plot the losses and print a sample."""
        if self.accelerator.is_main_process:
            self.state.save_to_json(str(self.output_dir / checkpoints.STATE))
        steps.finish(self.recipe, self.accelerator, self.model, self.state)
        self.accelerator.end_training()  # ends the trackers and the process group

    # ----- helpers -----

    def bar(self, name: str, total: int, initial: int = 0) -> tqdm:
        off = self.args.disable_tqdm or not self.accelerator.is_local_main_process
        return tqdm(desc=name, total=total, initial=initial, disable=off, leave=name == "training")

    def tracked_settings(self) -> dict[str, Any]:
        """Return the settings of the run as plain values, which trackers accept."""
        plain = (int, float, str, bool)
        return {k: v if isinstance(v, plain) else str(v) for k, v in self.recipe.settings.overrides.items()}


def without_touching_the_seed(loader: Iterable[Any]) -> Iterator[Any]:
    """Iterate over `loader` without a change of torch's random state.

    Every new iterator draws a random number. A resumed run makes one iterator more than an uninterrupted one.
    """
    iterator = iter(loader)
    with torch.random.fork_rng(devices=[]):  # the number is drawn on the CPU
        first = next(iterator)
    yield first
    yield from iterator


def check(given: settings.Settings) -> None:
    """Raise InputError for a field that this loop uses with a value that it does not support."""
    for name in ("eval_strategy", "save_strategy"):
        value = getattr(given.training, name).value
        if value not in ("steps", "no"):
            raise InputError(f"{name} must be 'steps' or 'no' in train_accelerate.py, got {value!r}")
    if given.training.save_strategy.value == "steps" and given.training.save_steps <= 0:
        raise InputError(f"save_steps must be above 0, got {given.training.save_steps}")


def main() -> None:
    given = settings.parse(None, description=__doc__, honoured=HONOURED)
    check(given)
    loop = Loop(steps.prepare(given, "train_accelerate.py"))
    with names_a_full_disk(loop.output_dir):
        loop.train()
        loop.finish()


if __name__ == "__main__":
    cli.run(main)
