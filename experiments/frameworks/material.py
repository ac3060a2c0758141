"""What a job trains: a tiny LLaMA and a tokenizer, both made from a config, and sums as records.

`python -m experiments.frameworks.material` writes model/ and data/ into the current folder.
"""

import json
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def records() -> list[dict[str, str]]:
    """Return 16 questions with a right and a wrong answer."""
    return [
        {"question": f"{i} plus {i + 3}?", "right": f"That is {2 * i + 3}.", "wrong": "No idea" + "!" * (i % 3)}
        for i in range(16)
    ]


def say(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def conversations() -> dict[str, list[dict[str, Any]]]:
    """Return the records in the forms that TRL's trainers take."""
    of_records = [
        (say("user", r["question"]), say("assistant", r["right"]), say("assistant", r["wrong"])) for r in records()
    ]
    return {
        "prompt": [{"prompt": prompt} for prompt, _, _ in of_records],
        "sft": [{"prompt": prompt, "completion": right} for prompt, right, _ in of_records],
        "messages": [{"messages": prompt + right} for prompt, right, _ in of_records],
        "preference": [{"prompt": p, "chosen": right, "rejected": wrong} for p, right, wrong in of_records],
        "triple": [{"prompt": p, "chosen": r, "rejected": w, "reference": r} for p, r, w in of_records],
        "reward": [{"chosen": p + right, "rejected": p + wrong} for p, right, wrong in of_records],
        "unpaired": [
            {"prompt": p, "completion": (right, wrong)[i % 2], "label": i % 2 == 0}
            for i, (p, right, wrong) in enumerate(of_records)
        ],
        "context": [
            {"prompt": p, "privileged_context": r["right"]} for (p, _, _), r in zip(of_records, records(), strict=True)
        ],
    }


def tokenizer() -> Any:
    """Return a tokenizer of bytes with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = {"pad_token": "<|pad|>", "eos_token": "<|end|>", "bos_token": "<|begin|>", "unk_token": "<|unknown|>"}
    bytes_ = Tokenizer(models.BPE())
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[*special.values(), "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bytes_.train_from_iterator((text for record in records() for text in record.values()), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bytes_, chat_template=TEMPLATE, model_max_length=256, **special)


def config(size: int) -> dict[str, Any]:
    """Return the sizes of a model with a vocabulary of `size`."""
    return {
        "vocab_size": size,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
    }


def main() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    for form, rows in conversations().items():
        folder = Path("data") / form
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    alpaca = [{"instruction": r["question"], "input": "", "output": r["right"]} for r in records()]
    Path("data/alpaca.json").write_text(json.dumps(alpaca), encoding="utf-8")
    Path("data/dataset_info.json").write_text(json.dumps({"sums": {"file_name": "alpaca.json"}}), encoding="utf-8")
    pairs = [{"anchor": r["question"], "positive": r["right"]} for r in records()]
    Path("data/pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    text = [{"text": f"{r['question']} {r['right']}"} for r in records()]
    Path("data/text.json").write_text("".join(json.dumps(row) + "\n" for row in text), encoding="utf-8")

    made = tokenizer()
    made.save_pretrained("model")
    torch.manual_seed(0)
    ids = {"pad_token_id": made.pad_token_id, "bos_token_id": made.bos_token_id, "eos_token_id": made.eos_token_id}
    LlamaForCausalLM(LlamaConfig(**config(len(made)), **ids)).save_pretrained("model")


if __name__ == "__main__":
    main()
