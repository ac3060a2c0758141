"""Turn records of instruction and response into TRL's prompt and completion, and check them before training."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig

from examples.llama_instruct import functions
from examples.llama_instruct.arguments import RecipeArguments
from examples.shared import text
from examples.shared.errors import InputError

logger = logging.getLogger("llama_instruct")
NAMED = 5  # the number of records that a message names


@dataclass
class Instructions:
    """Conversations. Each has a prompt, a completion, and the number of its record."""

    train: Dataset
    validation: Dataset | None  # None if nothing is held out


def load(recipe: RecipeArguments) -> Instructions:
    """Return the instructions that `recipe` names. Raise InputError, which names the record, if one is wrong."""
    if recipe.dataset_name == "stdlib":
        train, validation = (conversations(functions.documented(held_out)) for held_out in (False, True))
    else:
        train, validation = from_datasets(recipe)
    if validation is not None:
        validation = evenly(validation, recipe.max_eval_records)
    return Instructions(evenly(train, recipe.max_train_records), validation)


def conversations(found: Sequence[functions.Function]) -> Dataset:
    if not found:
        raise InputError("the standard library here has no .py files; pass --dataset_name")
    pairs = (pair for f in found for pair in f.instructions)
    return Dataset.from_list([conversation(*pair) | {"record": number} for number, pair in enumerate(pairs)])


def conversation(prompt: str, completion: str) -> dict[str, list[dict[str, str]]]:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "completion": [{"role": "assistant", "content": completion}],
    }


def from_datasets(recipe: RecipeArguments) -> tuple[Dataset, Dataset | None]:
    """Return a data set, and its own validation or test split or a seeded share of its records to validate on."""
    name = recipe.dataset_name
    splits = text.load_splits(name, data_files=recipe.data_files)
    held_out = text.held_out_split(splits)
    train = checked(splits["train"], "train", recipe)
    if held_out is not None:
        return train, checked(splits[held_out], held_out, recipe)
    count = round(len(train) * recipe.validation_fraction)
    if count == 0:
        return train, None
    if count >= len(train):
        raise InputError(
            f"data set {name!r} has {len(train)} records, and validation_fraction={recipe.validation_fraction} "
            "leaves none to train on; choose a smaller one"
        )
    parts = train.train_test_split(test_size=count, seed=2357)
    return parts["train"], parts["test"]


def checked(split: Dataset, where: str, recipe: RecipeArguments) -> Dataset:
    """Return `split` as conversations. Raise InputError, which names the record, if a text is missing or empty."""
    columns = [recipe.prompt_column, recipe.completion_column]
    columns += [recipe.input_column] if recipe.input_column else []
    for option, column in zip(("prompt_column", "completion_column", "input_column"), columns, strict=False):
        text.check_column(split, column, recipe.dataset_name, option)
    made, empty = [], []
    for number, record in enumerate(split.select_columns(columns)):
        for column in columns:
            required, value = column != recipe.input_column, record[column]
            if (value is None and required) or not isinstance(value, str | None):
                what = "is missing" if value is None else f"is a {type(value).__name__}, not text"
                raise InputError(f"record {number} of the {where} split: {column!r} {what}")
            if column == recipe.completion_column and recipe.empty_completions == "keep" and not value.strip():
                empty.append(number)
            elif required and not value.strip():
                raise InputError(f"record {number} of the {where} split: {column!r} is empty")
        below = record[recipe.input_column] if recipe.input_column else None
        prompt = record[recipe.prompt_column] + (f"\n\n### Input:\n{below}" if below and below.strip() else "")
        made.append(conversation(prompt, record[recipe.completion_column]) | {"record": number})
    warn(empty, f"of {len(made)} records of the {where} split have an empty response and are kept")
    return Dataset.from_list(made)


def evenly(split: Dataset, limit: int | None) -> Dataset:
    if limit is None or limit >= len(split):
        return split
    return split.select(np.arange(limit) * len(split) // limit)


def warn(records: Sequence[int], what: str) -> None:
    """Warn of `records`: their number, `what` is wrong with them, and the first ones."""
    if records and PartialState().is_main_process:
        named = ", ".join(map(str, records[:NAMED])) + (", ..." if len(records) > NAMED else "")
        logger.warning("%d %s: %s", len(records), what, named)


def warn_of_long(split: Dataset, where: str, tokenizer: PreTrainedTokenizerBase, args: SFTConfig) -> None:
    """Warn of the records that are longer than `args.max_length`, which TRL truncates.

    Raises:
        InputError: If no record has a part of the response left.
    """
    limit = args.max_length
    if limit is None or (args.packing and args.packing_strategy != "bfd"):  # the others cut nothing off
        return
    lengths = []
    for start in range(0, len(split), 1000):
        rows = split[start : start + 1000]
        pairs = list(zip(rows["prompt"], rows["completion"], strict=True))
        asked = tokenizer.apply_chat_template([p for p, _ in pairs], tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template([p + c for p, c in pairs], tokenize=False)
        ids = (tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in (asked, whole))
        lengths += [(len(prompt), len(both)) for prompt, both in zip(*ids, strict=True)]
    keeps_start = args.truncation_mode == "keep_start"
    without = [i for i, (prompt, _) in enumerate(lengths) if keeps_start and prompt >= limit]
    if len(without) == len(split):
        raise InputError(
            f"every prompt of the {where} split has max_length={limit} tokens or more (the first {lengths[0][0]}), so "
            "nothing of the responses is left; choose a larger --max_length"
        )
    skipped = set(without)
    cut = [i for i, (_, both) in enumerate(lengths) if both > limit and i not in skipped]
    long = f"of {len(split)} records of the {where} split are longer than max_length={limit} tokens and"
    left = "are packed without a response" if args.packing else "are left out, because their prompts are that long"
    warn([split[i]["record"] for i in cut], f"{long} are truncated")
    warn([split[i]["record"] for i in without], f"{long} {left}")
