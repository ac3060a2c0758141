"""The settings of a run, checked before anything is written.

The keys of a config, and the names on the command line, are the fields of `RecipeArguments` and of TRL's `SFTConfig` (a
`transformers.TrainingArguments`) and `ModelConfig`.
"""

from collections.abc import Sequence
from pathlib import Path

from trl import ModelConfig, SFTConfig

from examples.llama_instruct.arguments import HERE, RecipeArguments
from examples.shared import launch
from examples.shared.cli import Parser
from examples.shared.errors import InputError

DEFAULT_CONFIG = HERE / "configs" / "stdlib.yaml"


def parse(argv: Sequence[str] | None, description: str | None) -> tuple[RecipeArguments, SFTConfig, ModelConfig]:
    """Parse and check `argv`. If something is wrong, exit with code 2 and one line on stderr.

    Args:
        argv: The arguments, by default those of the command line. Without `--config` configs/stdlib.yaml is read.
        description: The text of `--help`.
    """
    parser = Parser((RecipeArguments, SFTConfig, ModelConfig), description, DEFAULT_CONFIG, "runs/llama-{}")
    recipe, args, model = parser.parse(argv, check)
    return recipe, args, model


def check(_recipe: RecipeArguments, args: SFTConfig, model: ModelConfig) -> None:
    """Raise the errors of `launch.check_training`, and InputError for options that exclude each other.

    `args.chat_template_path` becomes the path of the file, which may be one of this recipe.
    """
    launch.check_training(args, lora=model.use_peft)
    if (model.load_in_4bit or model.load_in_8bit) and not model.use_peft:
        raise InputError(
            "load_in_4bit and load_in_8bit need LoRA, because quantized weights are not trained; add --use_peft"
        )
    if isinstance(model.lora_target_modules, str) and model.lora_target_modules != "all-linear":
        # TRL turns a list of one name into a string, and PEFT takes a string as a pattern of the whole name.
        model.lora_target_modules = [model.lora_target_modules]
    if args.chat_template_path is not None:
        found = [p for p in (Path(args.chat_template_path), HERE / args.chat_template_path) if p.is_file()]
        if not found:
            known = ", ".join(sorted(f"templates/{p.name}" for p in (HERE / "templates").glob("*.jinja")))
            raise InputError(f"chat_template_path {args.chat_template_path} is not a file; the recipe has {known}")
        args.chat_template_path = str(found[0])
