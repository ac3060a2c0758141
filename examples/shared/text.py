"""Text to train on: Python's standard library and data sets, and the tokenizers for it."""

import hashlib
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from examples.shared.errors import InputError, one_line

END_OF_TEXT = "<|endoftext|>"
# Third-party packages are not the standard library, and tests are a quarter of it and repeat themselves.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib-dynload"}


def library_files(root: Path | None = None) -> Iterator[tuple[Path, Path]]:
    """Yield each .py file of the standard library: its path, and its path relative to the library.

    Args:
        root: The folder of the library, by default this interpreter's.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not SKIPPED_FOLDERS & set(relative.parts):
            yield path, relative


def is_one_in(count: int, name: bytes) -> bool:
    """Return whether `name` is in the share of 1 / `count` of all names that its hash selects."""
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") % count == 0


def load_splits(name: str, *args: Any, **kwargs: Any) -> datasets.DatasetDict:
    """Return the splits of a data set, of which one is "train".

    Args:
        name: A name on the Hub, a folder, or a loader such as "json".
        args: Further arguments of `datasets.load_dataset`.
        kwargs: Further arguments of `datasets.load_dataset`.

    Raises:
        InputError: If it cannot be loaded, or has no split "train".
    """
    try:
        splits = datasets.load_dataset(name, *args, **kwargs)
    except (OSError, ValueError, RuntimeError, StopIteration, datasets.exceptions.DatasetsError) as error:
        # An empty file ends an iterator, which says nothing.
        reason = one_line(f"{error} {error.__cause__ or ''}") or "there is nothing in it"
        raise InputError(f"data set {name!r} cannot be loaded: {reason}") from error
    if "train" not in splits:
        raise InputError(f"data set {name!r} has no split 'train'; it has {', '.join(splits)}")
    return splits


def held_out_split(splits: datasets.DatasetDict) -> str | None:
    """Return the name of the split to evaluate on, or None if there is none."""
    return next((split for split in ("validation", "test") if split in splits), None)


def check_column(split: datasets.Dataset, column: str, name: str, option: str) -> None:
    """Raise InputError if `split` of the data set `name` lacks `column`, which is the value of `option`."""
    if column not in split.column_names:
        columns = ", ".join(split.column_names)
        raise InputError(f"data set {name!r} has no column {column!r}; pass --{option}, one of: {columns}")


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Return a pretrained tokenizer. Raise InputError if it cannot be loaded."""
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"tokenizer {name!r} cannot be loaded: {one_line(error)}") from error


def train_bpe(texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str]) -> Tokenizer:
    """Return a byte-level BPE like GPT-2's. It needs no unknown token, and decoding returns the exact text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return bpe
