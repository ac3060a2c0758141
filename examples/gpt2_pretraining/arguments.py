"""The settings of the model and of its data."""

import os
from dataclasses import dataclass, field

from adopt_hf.backends import cache
from examples.shared.errors import InputError

DTYPES = ("float32", "bfloat16")


@dataclass
class ModelArguments:
    """The GPT-2 to train from random weights. Its context is `block_size` tokens, its vocabulary the tokenizer's."""

    n_layer: int = field(default=12, metadata={"help": "The number of transformer blocks."})
    n_head: int = field(
        default=12, metadata={"help": "The number of attention heads. n_embd must be a multiple of it."}
    )
    n_embd: int = field(default=768, metadata={"help": "The size of the embeddings and hidden states."})
    dropout: float = field(
        default=0.0, metadata={"help": "The dropout probability of embeddings, attention and residuals, in [0, 1)."}
    )
    dtype: str = field(
        default="float32",
        metadata={
            "help": "The dtype of the parameters: 'float32' or 'bfloat16'. With 'bfloat16' set optim_args to "
            "'bf16_stochastic_round=true', because small updates are lost without it."
        },
    )

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        for name in ("n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_embd % self.n_head:
            raise InputError(f"n_embd must be a multiple of n_head, got n_embd={self.n_embd}, n_head={self.n_head}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be in [0, 1), got {self.dropout}")


@dataclass
class DataArguments:
    """The source of the text, the blocks of tokens made of it, and the sample at the end."""

    dataset_name: str = field(
        default="stdlib",
        metadata={
            "help": "'stdlib' for the source of Python's standard library, or an argument of datasets.load_dataset: "
            "a name on the Hub, a local folder, or 'json', 'text', 'csv', 'parquet' together with --data_files."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "The configuration of the data set."})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "The branch, tag or commit of the data set on the Hub."}
    )
    data_files: list[str] | None = field(
        default=None, metadata={"help": "The files for 'json', 'text', 'csv' or 'parquet'."}
    )
    text_column: str = field(default="text", metadata={"help": "The column that holds the text."})
    validation_fraction: float = field(
        default=0.01,
        metadata={"help": "The share of the documents to hold out if the data set has no validation split."},
    )
    split_seed: int = field(default=2357, metadata={"help": "The seed that chooses the held-out documents."})
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "A pretrained tokenizer. Without it, a byte-level BPE is trained on the training text."},
    )
    vocab_size: int = field(
        default=2048, metadata={"help": "The number of tokens of the BPE that is trained, with <|endoftext|>."}
    )
    block_size: int = field(default=1024, metadata={"help": "The number of tokens in a sequence."})
    max_eval_blocks: int | None = field(
        default=None, metadata={"help": "The number of blocks to evaluate on, evenly spaced. Default: all."}
    )
    cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "The cache of tokenizers and tokens. Default: $XDG_CACHE_HOME/adopt_hf or ~/.cache/adopt_hf."
        },
    )
    sample_prompt: str = field(default="", metadata={"help": "The start of the text sample at the end."})
    sample_tokens: int = field(default=120, metadata={"help": "The number of tokens of the text sample. 0: no sample."})

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            raise InputError(f"validation_fraction must be between 0 and 1, got {self.validation_fraction}")
        if self.vocab_size < 257:  # 256 bytes and <|endoftext|>
            raise InputError(f"vocab_size must be at least 257 (the bytes and <|endoftext|>), got {self.vocab_size}")
        if self.block_size < 2:
            raise InputError(f"block_size must be at least 2, got {self.block_size}")
        if self.max_eval_blocks is not None and self.max_eval_blocks < 1:
            raise InputError(f"max_eval_blocks must be at least 1, got {self.max_eval_blocks}")
        if self.sample_tokens < 0:
            raise InputError(f"sample_tokens must not be negative, got {self.sample_tokens}")
        self.cache_dir = os.path.expanduser(self.cache_dir or str(cache.user_cache() / "adopt_hf"))
