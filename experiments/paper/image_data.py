"""Images for training, validation and test, as tensors: scikit-learn's digits, or a data set that `datasets` loads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from examples.shared.errors import InputError, one_line
from experiments.paper.extras import timm
from experiments.paper.image_arguments import ImageArguments

SPLIT_SEED = 2357  # which images are held out does not depend on the seed of a run
DIGITS_TEST_FRACTION = 0.2
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Transform = Callable[[Image.Image], torch.Tensor]


class Images(Dataset):
    """Rows of images. An item is {"pixel_values": float32 (channels, size, size), "labels": class number}."""

    def __init__(self, rows: Any, indices: Sequence[int], image: str, label: str, transform: Transform) -> None:
        self.rows, self.indices, self.image, self.label, self.transform = rows, indices, image, label, transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[int(self.indices[index])]
        return {"pixel_values": self.transform(row[self.image]), "labels": int(row[self.label])}


@dataclass
class Splits:
    """`validation` is None where no images are held out."""

    train: Images
    validation: Images | None
    test: Images
    num_labels: int


def load(args: ImageArguments) -> Splits:
    """Load the data set that `args` names.

    Raises:
        InputError: If it cannot be loaded, lacks a split or a column, or leaves nothing to train on.
    """
    train, test, num_labels = _digits() if args.dataset_name == "digits" else _named(args)
    image, label = ("image", "label") if args.dataset_name == "digits" else (args.image_column, args.label_column)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(train))
    held_out = round(len(train) * args.validation_fraction)
    if held_out >= len(train):
        raise InputError(f"validation_fraction {args.validation_fraction} leaves nothing of {len(train)} images")
    learning, looking = transform(args, training=True), transform(args, training=False)
    return Splits(
        Images(train, np.sort(order[held_out:]), image, label, learning),
        Images(train, np.sort(order[:held_out]), image, label, looking) if held_out else None,
        Images(test, np.arange(len(test)), image, label, looking),
        num_labels,
    )


def transform(args: ImageArguments, training: bool) -> Transform:
    """Return a function from an image to a tensor. It is random if `training`, and if the recipe says so."""
    mode = "L" if args.num_channels == 1 else "RGB"
    if args.augmentation == "timm":
        of_timm = timm("augmentation: timm").data.create_transform(
            args.image_size,
            is_training=training,
            auto_augment=args.auto_augment if training else None,
            re_prob=args.random_erasing if training else 0.0,
            interpolation="bicubic",
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )
        return lambda image: of_timm(image.convert(mode))

    def plain(image: Image.Image) -> torch.Tensor:
        image = image.convert(mode)
        if image.size != (args.image_size, args.image_size):
            image = image.resize((args.image_size, args.image_size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32).copy() / 255)
        pixels = pixels.reshape(args.image_size, args.image_size, args.num_channels).permute(2, 0, 1)
        pixels = (pixels - args.mean) / args.std
        return crop_flip(pixels) if training and args.augmentation == "crop_flip" else pixels

    return plain


def crop_flip(pixels: torch.Tensor) -> torch.Tensor:
    """`pixels` (channels, size, size), padded by an eighth on all sides, cropped at random, flipped half the time."""
    size = pixels.shape[-1]
    padding = size // 8
    padded = torch.nn.functional.pad(pixels, (padding,) * 4)
    top, left = torch.randint(2 * padding + 1, (2,)).tolist()
    cropped = padded[:, top : top + size, left : left + size]
    return cropped.flip(-1) if torch.rand(()) < 0.5 else cropped


def _digits() -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """Return scikit-learn's 1,797 handwritten digits of 8x8 pixels, a fifth of them for the test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(f"dataset_name 'digits' needs scikit-learn: pip install scikit-learn ({error})") from None
    found = load_digits()
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)
    rows = [{"image": Image.fromarray(one), "label": int(y)} for one, y in zip(pixels, found.target, strict=True)]
    order = np.random.default_rng(SPLIT_SEED + 1).permutation(len(rows))
    tested = round(len(rows) * DIGITS_TEST_FRACTION)
    return [rows[i] for i in order[tested:]], [rows[i] for i in order[:tested]], 10


def _named(args: ImageArguments) -> tuple[Any, Any, int]:
    import datasets

    try:
        splits = datasets.load_dataset(args.dataset_name, args.dataset_config_name)
    except (OSError, ValueError, RuntimeError, StopIteration, datasets.exceptions.DatasetsError) as error:
        reason = one_line(error) or "there is nothing in it"
        raise InputError(f"data set {args.dataset_name!r} cannot be loaded: {reason}") from error
    for split in ("train", args.test_split):
        if split not in splits:
            raise InputError(f"data set {args.dataset_name!r} has no split {split!r}; it has {', '.join(splits)}")
    train = splits["train"]
    for column in (args.image_column, args.label_column):
        if column not in train.column_names:
            columns = ", ".join(train.column_names)
            raise InputError(f"data set {args.dataset_name!r} has no column {column!r}; it has {columns}")
    label = train.features[args.label_column]
    num_labels = getattr(label, "num_classes", None) or max(train[args.label_column]) + 1
    return train, splits[args.test_split], num_labels
