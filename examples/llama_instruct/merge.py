"""Merge an adapter into its base model, which can then be used without PEFT.

python examples/llama_instruct/merge.py runs/llama-stdlib_lora merged
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # `python FILE` finds the package `examples`

from examples.llama_instruct import adapters
from examples.shared.cli import run
from examples.shared.errors import InputError
from examples.shared.launch import make_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", help="a folder with an adapter")
    parser.add_argument("output_dir", help="a folder that does not exist yet")
    parser.add_argument("--base", help="the base model, if it is no longer where the adapter says")
    args = parser.parse_args()
    if not adapters.is_adapter(args.adapter):
        raise InputError(f"there is no adapter in {args.adapter}; give the folder of a run with use_peft")
    if Path(args.output_dir).exists():
        raise InputError(f"output_dir {args.output_dir} exists already; choose another")
    model, tokenizer = adapters.load(args.adapter, args.base, dtype="auto")
    make_folder(Path(args.output_dir), "output_dir")
    merged = model.merge_and_unload(progressbar=True, safe_merge=True)
    merged.save_pretrained(args.output_dir)
    tokenizer.save_pretrained(args.output_dir)
    base = args.base or adapters.base_of(args.adapter)
    (Path(args.output_dir) / adapters.RUN).write_text(json.dumps({"base": base}) + "\n", encoding="utf-8")
    print(f"{args.adapter} merged into {base}: {args.output_dir}")


if __name__ == "__main__":
    run(main)
