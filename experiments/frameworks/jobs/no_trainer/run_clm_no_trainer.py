"""A script of the kind of transformers' run_clm_no_trainer.py: a loop of Accelerate, with param groups by name."""

import os

import torch
from accelerate import Accelerator
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, default_data_collator

# page:
import adopt_hf

# end of page


def main() -> None:
    accelerator = Accelerator(cpu=True)
    tokenizer = AutoTokenizer.from_pretrained("model")
    model = AutoModelForCausalLM.from_pretrained("model")
    data = load_dataset("json", data_files="data/text.json", split="train")

    def tokenize(row: dict) -> dict:
        words = tokenizer(row["text"], padding="max_length", max_length=32)
        return {**words, "labels": words["input_ids"]}

    data = data.map(tokenize, remove_columns="text")
    loader = torch.utils.data.DataLoader(data, batch_size=4, collate_fn=default_data_collator)
    no_decay = ("bias", "norm.weight")
    named = list(model.named_parameters())
    optimizer_grouped_parameters = [
        {"params": [p for n, p in named if not n.endswith(no_decay)], "weight_decay": 0.1},
        {"params": [p for n, p in named if n.endswith(no_decay)], "weight_decay": 0.0},
    ]
    # page:
    # instead of optimizer = torch.optim.AdamW(optimizer_grouped_parameters, lr=1e-2)
    optimizer = adopt_hf.ADOPTW(optimizer_grouped_parameters, lr=1e-2, betas=(0.9, 0.99))
    # end of page
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    done = 0
    if os.environ["RESUME"]:
        accelerator.load_state(os.environ["RESUME"])
        done = 2
    for step, batch in enumerate(loader, start=1):
        if step <= done:
            continue
        accelerator.backward(model(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()
        if step == 2:
            accelerator.save_state("out/checkpoint-2")


if __name__ == "__main__":
    main()
