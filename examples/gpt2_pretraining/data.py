"""Turn text into full blocks of tokens, cached on disk.

A cache file holds the token ids of one split as uint16 or uint32, with <|endoftext|> after every document. Its name
contains a hash of the text and of the tokenizer. A block is a part of the file, so every block size uses the same file.
A file gets its name when it is complete. A lock lets one process write while the others wait.
"""

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from filelock import FileLock
from tokenizers import __version__ as tokenizers_version
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from adopt_hf.backends import cache as files
from examples.gpt2_pretraining.arguments import DataArguments
from examples.gpt2_pretraining.sources import Source, open_source
from examples.shared import launch, text
from examples.shared.errors import InputError
from examples.shared.text import END_OF_TEXT

logger = logging.getLogger("gpt2_pretraining")
CACHE_FORMAT = 1  # part of every key: increase it if a change of this module changes the tokens
DOCUMENTS_AT_A_TIME = 256


class Blocks(Dataset):
    """Blocks of `block_size` tokens of a cache file. An incomplete block at the end is left out.

    An item is {"input_ids", "labels"}. Both are the same int64 tensor (block_size,), because GPT-2 shifts the labels.

    Args:
        path: The cache file.
        dtype: The NumPy dtype of the token ids in the file.
        block_size: The number of tokens of a block.
        multiple: The number of blocks is a multiple of this, so that every batch is full.
        limit: The largest number of blocks, evenly spaced over the file. None: all.
    """

    def __init__(self, path: Path, dtype: str, block_size: int, multiple: int = 1, limit: int | None = None):
        self.path, self.dtype, self.block_size = path, dtype, block_size
        self.num_tokens = path.stat().st_size // np.dtype(dtype).itemsize
        total = self.num_tokens // block_size
        self.total = total - total % multiple
        self.length = min(self.total, limit or self.total)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        start = index * self.total // self.length * self.block_size
        offset = start * np.dtype(self.dtype).itemsize
        ids = np.fromfile(self.path, dtype=self.dtype, count=self.block_size, offset=offset).astype(np.int64)
        tensor = torch.from_numpy(ids)
        return {"input_ids": tensor, "labels": tensor}


@dataclass
class Corpus:
    """A tokenizer, and the blocks of the training and of the validation text."""

    tokenizer: PreTrainedTokenizerBase
    train: Blocks
    validation: Blocks


def load(data: DataArguments, batch_size: int) -> Corpus:
    """Tokenise and pack the text, or reuse the cached tokens.

    Args:
        data: The settings of the data.
        batch_size: The sequences in one micro-batch over all processes. The number of training blocks is a multiple.

    Raises:
        InputError: If the text or the cache cannot be used, or the text is too short for one block.
    """
    assert data.cache_dir is not None
    cache = launch.open_cache(Path(data.cache_dir))
    source = open_source(data)
    tokenizer = load_tokenizer(data, source, cache)
    train = tokens(source, "train", source.train, tokenizer, cache)
    validation = tokens(source, "validation", source.validation, tokenizer, cache)
    corpus = Corpus(
        tokenizer,
        Blocks(*train, data.block_size, multiple=batch_size),
        Blocks(*validation, data.block_size, limit=data.max_eval_blocks),
    )
    for split, blocks, needed in (("training", corpus.train, batch_size), ("validation", corpus.validation, 1)):
        if not len(blocks):
            raise InputError(
                f"the {split} text of {data.dataset_name!r} has {blocks.num_tokens} tokens, fewer than {needed} "
                f"block(s) of block_size={data.block_size}; choose a smaller --block_size or batch"
            )
    return corpus


@contextlib.contextmanager
def written_once(path: Path) -> Iterator[Path | None]:
    """Yield a temporary path to write to, or None if `path` exists and no other user could have changed it.

    The temporary file or folder is renamed to `path` when the `with` block ends without an error. The next run removes
    the temporary one that a killed run has left. The lock makes this safe.
    """
    with FileLock(f"{path}.lock"):
        if path.exists():
            reason = files.why_not_all_trusted(path)
            if reason is None:
                yield None
                return
            logger.warning("%s is made again: %s", path, reason)
            remove(path)
        unfinished = path.with_name(f"{path.name}.unfinished")
        remove(unfinished)
        yield unfinished
        files.protect(unfinished)
        os.replace(unfinished, path)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def key_of(*parts: object) -> str:
    return hashlib.sha256(repr((CACHE_FORMAT, *parts)).encode()).hexdigest()[:20]


def load_tokenizer(data: DataArguments, source: Source, cache: Path) -> PreTrainedTokenizerBase:
    """Return the pretrained tokenizer that `data` names, or a BPE of the training text, cached on disk."""
    if data.tokenizer_name is not None:
        tokenizer = text.load_tokenizer(data.tokenizer_name)
        if tokenizer.eos_token_id is None or not tokenizer.is_fast:
            raise InputError(f"tokenizer {data.tokenizer_name!r} must be a fast one with an end-of-text token")
        return tokenizer
    key = key_of(source.key, data.vocab_size, tokenizers_version)
    path = cache / f"{source.name}-bpe{data.vocab_size}-{key}"
    with written_once(path) as unfinished:
        if unfinished is not None:
            logger.info("training a BPE of %d tokens on %s", data.vocab_size, source.name)
            train_tokenizer(source, data.vocab_size).save_pretrained(unfinished)
            logger.info("tokenizer: trained, cached in %s", path)
        elif PartialState().is_main_process:
            logger.info("tokenizer: reused %s", path)
    return PreTrainedTokenizerFast.from_pretrained(path)


def train_tokenizer(source: Source, vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE, trained on the training text of `source`."""
    bpe = text.train_bpe(source.train(), vocab_size, [END_OF_TEXT])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)


def tokens(
    source: Source, split: str, documents: Callable[[], Iterator[str]], tokenizer: PreTrainedTokenizerBase, cache: Path
) -> tuple[Path, str]:
    """Return the cache file with the tokens of one split and the dtype of its ids. Write the file if it is missing."""
    dtype = "uint16" if len(tokenizer) <= 2**16 else "uint32"
    key = key_of(source.key, split, tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id)
    path = cache / f"{source.name}-{split}-{key}.{dtype}"
    with written_once(path) as unfinished:
        if unfinished is not None:
            with open(unfinished, "wb") as file:
                for ids in tokenised(documents(), tokenizer, f"tokenising {source.name} {split}"):
                    file.write(np.asarray(ids, dtype=dtype).tobytes())
            logger.info("tokens: %s tokenised, cached in %s", split, path)
        elif PartialState().is_main_process:
            logger.info("tokens: %s reused from %s", split, path)
    return path, dtype


def tokenised(documents: Iterator[str], tokenizer: PreTrainedTokenizerBase, progress: str) -> Iterator[list[int]]:
    """Yield the token ids of each document, with <|endoftext|> at the end. A batch is encoded on all cores."""
    with tqdm(desc=progress, unit=" documents") as bar:
        while batch := list(islice(documents, DOCUMENTS_AT_A_TIME)):
            for ids in tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]:
                yield [*ids, tokenizer.eos_token_id]
            bar.update(len(batch))
