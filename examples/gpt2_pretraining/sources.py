"""The text to train on: the source code of Python's standard library, or a data set that `datasets` can load."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from examples.gpt2_pretraining.arguments import DataArguments
from examples.shared import text
from examples.shared.errors import InputError

STDLIB_VALIDATION = 20  # one file in 20 is held out
ROWS = 1000  # the rows that are read from a data set at once


@dataclass
class Source:
    """Documents for training and validation.

    `train` and `validation` return a new iterator over their documents on every call. `key` changes if a document or
    the split changes.
    """

    name: str
    key: str
    train: Callable[[], Iterator[str]]
    validation: Callable[[], Iterator[str]]


def open_source(data: DataArguments) -> Source:
    """Return the text that `data` names. Raise InputError if there is none."""
    return stdlib() if data.dataset_name == "stdlib" else from_datasets(data)


def stdlib(root: Path | None = None) -> Source:
    """Return the .py files of the standard library. The hash of a file's path decides whether it is held out.

    Args:
        root: The folder of the library, by default this interpreter's.
    """
    texts: dict[str, list[str]] = {"train": [], "validation": []}
    digest = hashlib.sha256()
    for path, relative in text.library_files(root):
        name, content = relative.as_posix().encode(), path.read_bytes()
        digest.update(len(name).to_bytes(8, "big") + name + len(content).to_bytes(8, "big") + content)
        held_out = "validation" if text.is_one_in(STDLIB_VALIDATION, name) else "train"
        texts[held_out].append(content.decode("utf-8", errors="replace"))
    for split, documents in texts.items():
        if not documents:
            raise InputError(f"the standard library here has no .py files for {split}; pass --dataset_name")
    return Source("stdlib", digest.hexdigest(), lambda: iter(texts["train"]), lambda: iter(texts["validation"]))


def from_datasets(data: DataArguments) -> Source:
    """Return a data set, with its own validation or test split or a seeded share of its documents to validate on."""
    name = data.dataset_name
    splits = text.load_splits(
        name, data.dataset_config_name, data_files=data.data_files, revision=data.dataset_revision
    )
    train = splits["train"]
    text.check_column(train, data.text_column, name, "text_column")
    dtype = getattr(train.features[data.text_column], "dtype", "nested")
    if dtype not in ("string", "large_string"):
        raise InputError(f"column {data.text_column!r} of data set {name!r} holds {dtype}, not text")

    own = text.held_out_split(splits)
    held_out = None if own is None else splits[own]
    key = [name, data.text_column, len(train)]
    # The names of the cache files contain the version, the revision and the checksums of the data set.
    key += [os.path.join(*Path(part["filename"]).parts[-4:]) for split in splits.values() for part in split.cache_files]
    if held_out is None:
        if len(train) < 2:
            raise InputError(f"data set {name!r} has {len(train)} rows; two are needed, one for validation")
        count = min(max(1, round(len(train) * data.validation_fraction)), len(train) - 1)
        chosen = np.zeros(len(train), dtype=bool)
        chosen[np.random.default_rng(data.split_seed).choice(len(train), count, replace=False)] = True
        key += [count, data.split_seed]
        # Ascending indices, so that the file is read from front to back.
        train, held_out = train.select(np.flatnonzero(~chosen)), train.select(np.flatnonzero(chosen))

    def documents(split: datasets.Dataset) -> Iterator[str]:
        for start in range(0, len(split), ROWS):
            yield from (document for document in split[start : start + ROWS][data.text_column] if document)

    digest = hashlib.sha256(repr(key).encode()).hexdigest()
    return Source(Path(name).name, digest, lambda: documents(train), lambda: documents(held_out))
