"""The settings of a run that TRL does not have: instructions, base model, and the steps after training."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from adopt_hf.backends import cache
from examples.shared.errors import InputError

HERE = Path(__file__).parent


@dataclass
class RecipeArguments:
    """The instructions, the base model if none is named, and the steps after training."""

    dataset_name: str = field(
        default="stdlib",
        metadata={
            "help": "'stdlib' for the documented functions of Python's standard library, or an argument of "
            "datasets.load_dataset: a name on the Hub, a local folder, or 'json', 'csv', 'parquet' together with "
            "--data_files."
        },
    )
    data_files: list[str] | None = field(default=None, metadata={"help": "The files for 'json', 'csv' or 'parquet'."})
    prompt_column: str = field(default="prompt", metadata={"help": "The column with the instruction."})
    input_column: str | None = field(
        default=None, metadata={"help": "A column whose text is put below the instruction, if it is not empty."}
    )
    completion_column: str = field(default="completion", metadata={"help": "The column with the response."})
    empty_completions: str = field(
        default="error",
        metadata={"help": "What to do with an empty response: 'error' stops, 'keep' trains on it. Alpaca has some."},
    )
    validation_fraction: float = field(
        default=0.05, metadata={"help": "The share of the records to hold out if the data set has no validation split."}
    )
    max_train_records: int | None = field(
        default=None, metadata={"help": "The number of records to train on, evenly spaced."}
    )
    max_eval_records: int | None = field(
        default=None, metadata={"help": "The number of records to evaluate on, evenly spaced."}
    )
    base_config: str = field(
        default=str(HERE / "configs" / "base.yaml"),
        metadata={"help": "The config of the small LLaMA that is pretrained if --model_name_or_path is not given."},
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "The cache of that LLaMA. Default: $XDG_CACHE_HOME/adopt_hf or ~/.cache/adopt_hf."},
    )
    evaluate: bool = field(
        default=False, metadata={"help": "Score the model before and after on multiple-choice questions (evaluate.py)."}
    )
    questions: int = field(default=400, metadata={"help": "The number of these questions. 0: all."})
    chat_prompt: str = field(default="", metadata={"help": "A question to the tuned model at the end. Default: none."})

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction < 1:
            raise InputError(f"validation_fraction must be in [0, 1), got {self.validation_fraction}")
        for name in ("max_train_records", "max_eval_records"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.empty_completions not in ("error", "keep"):
            raise InputError(f"empty_completions must be 'error' or 'keep', got {self.empty_completions!r}")
        if self.questions < 0:
            raise InputError(f"questions must not be negative, got {self.questions}")
        if self.dataset_name == "stdlib" and self.data_files:
            raise InputError(
                "data_files needs dataset_name json, csv or parquet, and dataset_name is 'stdlib'; set one of them"
            )
        if self.dataset_name in ("json", "csv", "parquet", "text") and not self.data_files:
            raise InputError(f"dataset_name {self.dataset_name!r} needs --data_files")
        self.cache_dir = os.path.expanduser(self.cache_dir or str(cache.user_cache() / "adopt_hf"))
