"""The settings of a run on images: a YAML config, and the command line, which takes precedence.

The names are the fields of `ImageArguments` and of transformers.TrainingArguments. Whatever is wrong is one line on
stderr and exit code 2.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

import adopt_hf  # noqa: F401  registers optim="adopt"; must come before the parser is built
from examples.shared.cli import Parser
from experiments.harness.runs import InputError

CONFIGS = Path(__file__).parent / "configs"
AUGMENTATIONS = ("none", "crop_flip", "timm")
BY_CLASS = ("amsgrad", "adashift")


@dataclass
class ImageArguments:
    """The data, the model from random weights, and the recipe beyond what TrainingArguments has."""

    dataset_name: str = field(
        default="digits",
        metadata={"help": "'digits' for scikit-learn's, or what datasets.load_dataset takes: a name or a folder."},
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "The configuration of the data set."})
    image_column: str = field(default="image", metadata={"help": "The column with the images."})
    label_column: str = field(default="label", metadata={"help": "The column with the class numbers."})
    test_split: str = field(default="test", metadata={"help": "The split that is tested on; 'train' is trained on."})
    validation_fraction: float = field(
        default=0.0, metadata={"help": "Share of the training images held out, to choose hyperparameters by."}
    )
    model_type: str = field(
        default="paper_mlp", metadata={"help": "What transformers.AutoConfig.for_model takes: resnet, swin, vit, ..."}
    )
    model_config: dict[str, Any] | str | None = field(
        default="{}", metadata={"help": "JSON: the fields of its config that differ."}
    )
    small_stem: bool = field(
        default=False, metadata={"help": "For a ResNet on small images: a first layer of 3x3, no stride, no pooling."}
    )
    image_size: int = field(default=8, metadata={"help": "Height and width that images are brought to."})
    num_channels: int = field(default=1, metadata={"help": "1 (grey) or 3 (colour)."})
    mean: float = field(default=0.5, metadata={"help": "Taken from pixels, which are in [0, 1]."})
    std: float = field(default=0.5, metadata={"help": "Pixels are then divided by it."})
    augmentation: str = field(
        default="none",
        metadata={
            "help": "'none'; 'crop_flip': padding of an eighth and random crop, flip; 'timm': timm's transforms."
        },
    )
    auto_augment: str = field(default="rand-m9-mstd0.5-inc1", metadata={"help": "timm's policy."})
    random_erasing: float = field(default=0.25, metadata={"help": "timm's probability of it."})
    mixup_alpha: float = field(default=0.0, metadata={"help": "timm's mixup; 0: none."})
    cutmix_alpha: float = field(default=0.0, metadata={"help": "timm's cutmix; 0: none. With mixup, half and half."})
    ema_decay: float = field(
        default=0.0, metadata={"help": "timm's average of the weights, which is then evaluated and saved; 0: none."}
    )
    optimizer: str | None = field(
        default=None,
        metadata={"help": f"An optimizer that --optim has no name for, instead of it: {', '.join(BY_CLASS)}."},
    )

    def __post_init__(self) -> None:
        for name, allowed in (("augmentation", AUGMENTATIONS), ("optimizer", (None, *BY_CLASS))):
            if getattr(self, name) not in allowed:
                texts = ", ".join(str(value) for value in allowed if value is not None)
                raise InputError(f"{name} must be one of {texts}, got {getattr(self, name)!r}")
        for name in ("validation_fraction", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("mixup_alpha", "cutmix_alpha"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.image_size < 1 or self.num_channels not in (1, 3) or self.std <= 0:
            raise InputError(
                "image_size must be at least 1, num_channels 1 or 3, std above 0, got "
                f"{self.image_size}, {self.num_channels} and {self.std}"
            )
        try:
            config = json.loads(str(self.model_config))
        except json.JSONDecodeError as error:
            raise InputError(f"model_config is not JSON: {error}: {self.model_config!r}") from None
        if not isinstance(config, dict):
            raise InputError(f"model_config must be a JSON object, got {self.model_config!r}")

    @property
    def mixes(self) -> bool:
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    @property
    def needs_timm(self) -> bool:
        return self.mixes or self.ema_decay > 0 or self.augmentation == "timm"


def parse(argv: Sequence[str], description: str | None) -> tuple[ImageArguments, TrainingArguments]:
    """Parse `argv`. If something is wrong, exit with code 2 and one line on stderr."""
    images, training = Parser((ImageArguments, TrainingArguments), description, CONFIGS / "digits_mlp.yaml").parse(argv)
    training.remove_unused_columns = False  # images become tensors as late as the batch is made
    return images, training
