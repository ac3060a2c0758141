"""An image classifier from random weights with the Hugging Face Trainer: any data set, any architecture, any `--optim`.

python -m experiments image_classification --config experiments/paper/configs/cifar10_resnet18.yaml --optim adamw_torch

Mixup, cutmix, the average of weights (EMA) and the augmentation of ImageNet are timm's, label smoothing is torch's.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    EvalPrediction,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

import experiments.paper.mlp  # noqa: F401  registers "paper_mlp"
from examples.shared.errors import InputError, one_line
from experiments.paper import image_arguments, image_data
from experiments.paper.adashift import AdaShift
from experiments.paper.extras import timm
from experiments.paper.image_arguments import ImageArguments


def train(images: ImageArguments, training: TrainingArguments) -> dict[str, Any]:
    """Train, evaluate as often as `training` says and at the end, and save the model unless nothing is saved.

    Returns:
        {"steps", "losses": the training loss at each logged step, "epochs", "accuracies": on the test images at each
        evaluation, "test_accuracy", "validation_accuracy" (None without such images), "parameters", "threads"}.
        A loss that is not finite is None.

    Raises:
        InputError: If a setting cannot be used. The text says what is allowed.
    """
    if images.needs_timm:
        timm("mixup, cutmix, ema_decay or augmentation timm")
    splits = image_data.load(images)
    set_seed(training.seed)
    trainer = make_trainer(images, training, splits)
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    tests = {"test": splits.test} | ({"validation": splits.validation} if splits.validation is not None else {})
    last = {name: trainer.evaluate(split, metric_key_prefix=f"final_{name}") for name, split in tests.items()}
    if training.save_strategy.value != "no":
        trainer.save_model()
        trainer.save_state()
    history = trainer.state.log_history
    return {
        "steps": [entry["step"] for entry in history if "loss" in entry],
        "losses": [
            round(entry["loss"], 4) if math.isfinite(entry["loss"]) else None for entry in history if "loss" in entry
        ],
        "epochs": [entry["epoch"] for entry in history if "eval_test_accuracy" in entry],
        "accuracies": [entry["eval_test_accuracy"] for entry in history if "eval_test_accuracy" in entry],
        "test_accuracy": last["test"]["final_test_accuracy"],
        "validation_accuracy": last["validation"]["final_validation_accuracy"] if "validation" in last else None,
        "parameters": trainer.model.num_parameters(),
        "threads": torch.get_num_threads(),
    }


def make_model(images: ImageArguments, num_labels: int) -> PreTrainedModel:
    """Return a model with random weights. Raises InputError if transformers has no such architecture or field."""
    fields = json.loads(str(images.model_config)) | {"num_labels": num_labels, "num_channels": images.num_channels}
    try:
        config = AutoConfig.for_model(images.model_type, **fields)
        # Some architectures take any size of image.
        unknown = [name for name in fields if not hasattr(type(config)(), name)]
        if hasattr(config, "image_size"):
            config.image_size = images.image_size
        model = AutoModelForImageClassification.from_config(config)
    except (ValueError, TypeError) as error:
        raise InputError(f"model_type {images.model_type!r}: {one_line(error)[:300]}") from None
    if unknown:
        raise InputError(f"model_config: {images.model_type} has no {', '.join(unknown)}")
    if images.small_stem:
        if images.model_type != "resnet":
            raise InputError(f"small_stem works with model_type resnet only, got {images.model_type}: leave it out")
        stem = model.resnet.embedder
        stem.embedder.convolution = nn.Conv2d(config.num_channels, config.embedding_size, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.embedder.convolution.weight, mode="fan_out", nonlinearity="relu")
        stem.pooler = nn.Identity()
    return model


def make_trainer(images: ImageArguments, training: TrainingArguments, splits: image_data.Splits) -> "ImageTrainer":
    model = make_model(images, splits.num_labels)
    average = timm("ema_decay").utils.ModelEmaV3(model, decay=images.ema_decay) if images.ema_decay else None
    evaluated = {"test": splits.test} | ({"validation": splits.validation} if splits.validation is not None else {})
    trainer = ImageTrainer(
        model=model,
        args=training,
        train_dataset=splits.train,
        eval_dataset=evaluated,
        data_collator=Mixing(images, splits.num_labels) if images.mixes else default_data_collator,
        compute_loss_func=Loss(training.label_smoothing_factor),
        compute_metrics=accuracy,
        preprocess_logits_for_metrics=lambda logits, _labels: logits.argmax(-1),
        optimizer_cls_and_kwargs=by_class(images, training),
        callbacks=[Averaging(average)] if average is not None else None,
    )
    trainer.average = average
    if training.disable_tqdm:
        trainer.remove_callback(PrinterCallback)
    return trainer


def by_class(images: ImageArguments, training: TrainingArguments) -> tuple[type, dict[str, Any]] | None:
    """Return the class and arguments of an optimizer without a name. Its weight decay, if it has one, is AdamW's."""
    betas = (training.adam_beta1, training.adam_beta2)
    if images.optimizer == "amsgrad":
        return torch.optim.AdamW, {
            "lr": training.learning_rate, "betas": betas, "eps": training.adam_epsilon, "amsgrad": True,
        }  # fmt: skip
    if images.optimizer == "adashift":
        if training.weight_decay:
            raise InputError(f"adashift has no weight decay, got weight_decay {training.weight_decay}: set it to 0")
        return AdaShift, {"lr": training.learning_rate, "betas": betas}
    return None


class ImageTrainer(Trainer):
    """Trainer that evaluates and saves the average of the weights, if there is one. It mixes only training images."""

    average: Any = None

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        collator, self.data_collator = self.data_collator, default_data_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = collator

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        with averaged(self.model, self.average):
            return super().evaluation_loop(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # A checkpoint holds the weights that training goes on with, and the average next to them.
        with averaged(self.model, None if _internal_call else self.average):
            super().save_model(output_dir, _internal_call)


@contextlib.contextmanager
def averaged(model: nn.Module, average: Any) -> Iterator[None]:
    """Inside, `model` has the weights of `average`, if there is one."""
    if average is None:
        yield
        return
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(average.module.state_dict())
    try:
        yield
    finally:
        model.load_state_dict(before)


class Averaging(TrainerCallback):
    """Updates timm's average after every step, and keeps it in checkpoints."""

    def __init__(self, average: Any) -> None:
        self.average = average

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.average.to(args.device)
        if state.global_step:
            folder = Path(args.resume_from_checkpoint or args.output_dir)
            if folder == Path(args.output_dir):
                folder = folder / f"checkpoint-{state.global_step}"
            self.average.load_state_dict(torch.load(folder / "average.pt", map_location=args.device))

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        self.average.update(model, step=state.global_step)

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            torch.save(self.average.state_dict(), folder / "average.pt")


class Mixing:
    """A collator that mixes images by timm's mixup and cutmix; labels become (batch, classes)."""

    def __init__(self, images: ImageArguments, num_labels: int) -> None:
        self.mix = timm("mixup_alpha or cutmix_alpha").data.Mixup(
            mixup_alpha=images.mixup_alpha,
            cutmix_alpha=images.cutmix_alpha,
            label_smoothing=0.0,  # the loss does that
            num_classes=num_labels,
        )

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = default_data_collator(list(items))
        even = len(items) - len(items) % 2  # timm mixes a batch with itself backwards, in pairs
        if even == 0:
            raise InputError(
                f"mixup and cutmix need batches of at least 2, got {len(items)}: raise per_device_train_batch_size"
            )
        pixels, labels = self.mix(batch["pixel_values"][:even], batch["labels"][:even])
        return {"pixel_values": pixels, "labels": labels}


class Loss:
    """Cross-entropy of class numbers (batch,) or of their shares (batch, classes), smoothed only in training."""

    def __init__(self, smoothing: float) -> None:
        self.smoothing = smoothing

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        smoothing = self.smoothing if torch.is_grad_enabled() else 0.0
        logits = outputs["logits"].float()
        total = nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
        if num_items_in_batch is None:
            return total / len(labels)
        # The Trainer counts the elements of labels over accumulation and processes.
        return total * (labels.numel() / len(labels)) / num_items_in_batch


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions == prediction.label_ids).mean())}


def main(argv: Sequence[str]) -> None:
    """One run from the command line; the model and its log go to `--output_dir`."""
    images, training = image_arguments.parse(argv, __doc__)
    found = train(images, training)
    print(
        f"test accuracy {found['test_accuracy']:.4f}; {found['parameters']:,} parameters; {training.output_dir}"
        + (f"; validation accuracy {found['validation_accuracy']:.4f}" if found["validation_accuracy"] else "")
    )
