"""Ask a tuned model, or a model with an adapter, something.

python examples/llama_instruct/chat.py runs/llama-stdlib "What does this function of os.path do? def abspath(path)"
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # `python FILE` finds the package `examples`

import torch

from examples.llama_instruct import adapters
from examples.shared.cli import run
from examples.shared.errors import InputError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder with a model or an adapter, or a name on the Hub")
    parser.add_argument("prompt", help="the question; - reads it from standard input")
    parser.add_argument("--base", help="the base model of an adapter, if it is no longer where the adapter says")
    parser.add_argument("--max_new_tokens", type=int, default=60)
    parser.add_argument("--use_cpu", action="store_true")
    args = parser.parse_args()
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    if not prompt.strip():
        raise InputError("the prompt is empty; write a question")
    if args.max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, got {args.max_new_tokens}")
    device = "cuda" if torch.cuda.is_available() and not args.use_cpu else "cpu"
    model, tokenizer = adapters.load(args.model, args.base, dtype="auto", device_map=device)
    if tokenizer.chat_template is None:
        raise InputError(f"the tokenizer in {args.model} has no chat template; set tokenizer.chat_template and save it")
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).to(device)
    context, length = getattr(model.config, "max_position_embeddings", None), inputs["input_ids"].shape[1]
    if context is not None and length + args.max_new_tokens > context:
        raise InputError(
            f"the prompt has {length} tokens, and with max_new_tokens={args.max_new_tokens} they exceed the model's "
            f"context of {context}; shorten one of them"
        )
    out = model.generate(**inputs, do_sample=False, max_new_tokens=args.max_new_tokens)
    answer = tokenizer.decode(out[0, length:], skip_special_tokens=True)
    print(f"> {prompt}\n{answer.strip()}")


if __name__ == "__main__":
    run(main)
