"""The settings of a run, checked before anything is written.

The keys of a config, and the names on the command line, are the fields of `ModelArguments`, `DataArguments` and
`transformers.TrainingArguments`.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from examples.gpt2_pretraining.arguments import DataArguments, ModelArguments
from examples.shared import launch
from examples.shared.cli import Parser
from examples.shared.errors import InputError

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "stdlib.yaml"


@dataclass
class Settings:
    """The settings of a run, as parsed. `overrides` are those that differ from the defaults, by name."""

    model: ModelArguments
    data: DataArguments
    training: TrainingArguments
    overrides: dict[str, Any]


def parse(argv: Sequence[str] | None, description: str | None, honoured: frozenset[str] | None = None) -> Settings:
    """Parse and check `argv`. If something is wrong, exit with code 2 and one line on stderr.

    Args:
        argv: The arguments, by default those of the command line. `--config FILE` or a bare `FILE.yaml` in front names
            the config, otherwise configs/stdlib.yaml is read.
        description: The text of `--help`.
        honoured: The fields of TrainingArguments that the script uses; None for all. Setting another one is an error.
    """
    parser = Parser((ModelArguments, DataArguments, TrainingArguments), description, DEFAULT_CONFIG)
    parser.set_defaults(eval_strategy="steps", lr_scheduler_type="cosine")

    def check(model: ModelArguments, data: DataArguments, args: TrainingArguments) -> None:
        if honoured is not None:
            fields = {f.name for f in dataclasses.fields(TrainingArguments)}
            if ignored := sorted((parser.overrides.keys() & fields) - honoured):
                raise InputError(
                    f"{', '.join(ignored)}: not supported by {parser.prog}, would be ignored; use train.py"
                )
        if args.logging_strategy != "steps":
            raise InputError(
                f"logging_strategy must be 'steps', got {args.logging_strategy.value!r}: loss.png is the log"
            )
        launch.check_training(args)

    model, data, args = parser.parse(argv, check)
    return Settings(model, data, args, parser.overrides)
