"""A training script in the style of run_clm.py. Each process writes down what it saw.

train_clm.py --output_dir DIR --n_layer 1 [any TrainingArguments]
"""

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, HfArgumentParser, Trainer, TrainingArguments, set_seed


@dataclass
class ModelArguments:
    n_layer: int = field(default=1, metadata={"help": "Number of layers."})


def main() -> None:
    model_args, training_args = HfArgumentParser((ModelArguments, TrainingArguments)).parse_args_into_dataclasses()
    set_seed(training_args.seed)
    config = GPT2Config(
        vocab_size=64, n_positions=16, n_embd=16, n_head=2, n_layer=model_args.n_layer, bos_token_id=0, eos_token_id=0
    )
    tokens = torch.randint(64, (32, 8))
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=training_args,
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
    )
    trainer.train()
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    optimizer = trainer.optimizer.optimizer
    seen = {
        "optim": str(getattr(training_args.optim, "value", training_args.optim)),
        "world_size": torch.distributed.get_world_size() if distributed else 1,
        "backend": torch.distributed.get_backend() if distributed else None,
        "distributed_type": trainer.accelerator.distributed_type.value,
        "pid": os.getpid(),
        "optimizer": f"{type(optimizer).__module__}.{type(optimizer).__qualname__}",
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
        "steps": sorted({float(state["step"]) for state in optimizer.state.values()}),
        "weights": [p.double().sum().item() for p in trainer.model.parameters()],
    }
    Path(training_args.output_dir, f"rank{training_args.process_index}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # the work is done; now and then a thread of a library aborts the interpreter's own end
