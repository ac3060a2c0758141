"""Grey pictures of digits: scikit-learn's, which need no network, or a data set by name."""

import torch
from torch import Tensor

from experiments.harness.runs import InputError

DIGITS = "digits"


def load(dataset: str) -> dict[str, Tensor]:
    """ "train", "validation" and "test": (pictures, pixels) each, grey from 0 to 1.

    Args:
        dataset: "digits", 8 x 8, split 1197 / 300 / 300; or what `datasets.load_dataset` takes, with the splits
            "train", whose last sixth is the validation, and "test", and a column of pictures of one size.

    Raises:
        InputError: If there is no such data set, or it lacks the splits or the column.
    """
    if dataset == DIGITS:
        from sklearn.datasets import load_digits

        grey = torch.tensor(load_digits().data / 16, dtype=torch.float32)
        order = torch.randperm(len(grey), generator=torch.Generator().manual_seed(0))
        train, validation, test = grey[order].split([1197, 300, 300])
        return {"train": train, "validation": validation, "test": test}
    train, test = _named(dataset)
    kept = len(train) - len(train) // 6
    return {"train": train[:kept], "validation": train[kept:], "test": test}


def _named(dataset: str) -> list[Tensor]:
    import numpy as np
    from datasets import Image, load_dataset

    try:
        found = load_dataset(dataset)
    except Exception as error:  # of the network, the hub, or the files
        raise InputError(
            f"dataset must be {DIGITS!r} or one that datasets can load, got {dataset!r}: {error}"
        ) from error
    if not {"train", "test"} <= set(found):
        raise InputError(f"dataset {dataset!r} has the splits {', '.join(found)}, and it needs train and test")
    columns = [name for name, feature in found["train"].features.items() if isinstance(feature, Image)]
    if not columns:
        raise InputError(f"dataset {dataset!r} has no column of pictures among {', '.join(found['train'].features)}")
    grey = []
    for split in ("train", "test"):
        pictures = np.stack([np.asarray(picture.convert("L")) for picture in found[split][columns[0]]])
        grey.append(torch.from_numpy(pictures.reshape(len(pictures), -1)).float() / 255)
    return grey
