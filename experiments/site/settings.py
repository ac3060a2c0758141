"""The reference of settings: every option, every name for `optim`, every environment variable."""

import ast

from adopt_hf.hyperparameters import HYPERPARAMETERS, OPTIONS, Hyperparameter
from adopt_hf.integrations.transformers import fields, optim_args
from experiments.harness import pages
from experiments.harness.machine import ROOT

KINDS = {  # kind -> the heading of its options, and what they have in common
    "update": ("The update", "These are in `param_groups` and in checkpoints, and a load brings them along."),
    "execution": ("Execution", "How the update is computed. A load does not change these."),
    "storage": ("Storage", "How the state is stored. A load does not change these."),
    "recipe": ("LoRA+", "How the Trainer makes the param groups. Only `optim_args` takes these."),
    "trainer": ("The Trainer", "A callback of the Trainer. Only `optim_args` takes it."),
}
FIELDS = {"lr": "learning_rate", "weight_decay": "weight_decay", "seed": "seed", **fields.ADAM}
BUILDS = {  # the names for `optim`
    "adopt": "`ADOPTW`",
    "adopt_8bit": "`ADOPTW` with 8-bit moments, `state_bits=8`",
    "adopt_layerwise": "`LayerwiseADOPTW`, which steps in `backward()`",
}
VARIABLES = {  # read by adopt_hf, or by what it needs
    "ADOPT_HF_CACHE": "The folder for compiled kernels and for the verdicts of the self-check. Default: a folder "
    "of the user's cache. A folder that other users can write to is refused.",
    "ADOPT_HF_REGISTER": '`1` registers `optim="adopt"` at the start of every Python that has adopt_hf installed from '
    "a wheel. `0` or an empty value is the default.",
    "CC": "The C compiler for the CPU kernel, with its options. Default: the first of `cc`, `gcc` and `clang`.",
    "PYTHONPATH": "`adopt-hf run` puts a folder of the package in front of it, so that the Pythons below the command "
    "know ADOPT.",
    "WORLD_SIZE": "Set by the launcher. A message about resuming then names the launcher and not `python`.",
    "XDG_CACHE_HOME": "The folder of the user's caches, if `ADOPT_HF_CACHE` is not set.",
}


def texts() -> dict[str, str]:
    """Return the pages of the options and of the environment variables."""
    return {"reference/options.md": options(), "reference/environment.md": environment()}


def options() -> str:
    """Return a section for each option, and for each name for `optim`."""
    parts = [
        "# Options\n\n"
        "Every option with its range, its defaults, and where it can be set. "
        "[Settings](docs/settings.md) has them in one table.\n",
        "## Names for `optim`\n",
        pages.table(["`TrainingArguments(optim=...)`", "builds"], [[f"`{n}`", c] for n, c in BUILDS.items()]),
        "",
    ]
    for kind, (title, words) in KINDS.items():
        names = [name for name, row in HYPERPARAMETERS.items() if row.kind == kind]
        parts += [f"## {title}\n", f"{words}\n"]
        parts += [_option(name, HYPERPARAMETERS[name]) for name in names]
    return "\n".join(parts)


def _option(name: str, row: Hyperparameter) -> str:
    in_group = "betas" if name in ("beta1", "beta2") else name
    rows = [
        ["allowed", row.allowed],
        ["default of `ADOPT`", f"`{row.default!r}`"],
        ["default of `ADOPTW`", f"`{row.default if row.of_adoptw is None else row.of_adoptw!r}`"],
        ["in `optim_args`", f'`optim_args="{name}={_example(row)}"`' if name in optim_args.KEYS else ""],
        ["field of TrainingArguments", f"`{FIELDS[name]}`" if name in FIELDS else ""],
        ["argument and key of the DeepSpeed block", f"`{in_group}`" if in_group in OPTIONS else ""],
    ]
    return (
        f"### `{name}`\n\n{row.help[0].upper()}{row.help[1:]}.\n\n"
        + "\n".join(f"- {what}: {value}" for what, value in rows if value)
        + f"\n\nAnother value is an error: `{name} must be {row.allowed}, got ...`\n"
    )


def _example(row: Hyperparameter) -> str:
    return str(row.values[0] if row.values else row.default).lower()


def environment() -> str:
    """Return the page of the environment variables."""
    rows = [[f"`{name}`", words] for name, words in VARIABLES.items()]
    return (
        "# Environment variables\n\nThe variables that adopt_hf reads or sets.\n\n"
        + pages.table(["variable", "what it does"], rows)
        + "\n"
    )


def variables_read() -> set[str]:
    """Return the names of the environment variables that the package reads or sets, from its source."""
    found = set()
    for path in (ROOT / "adopt_hf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            of_environ = [one for one in ast.walk(node) if isinstance(one, ast.Attribute) and one.attr == "environ"]
            if of_environ and isinstance(node, ast.Call | ast.Subscript | ast.Compare):
                found |= {one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and _is_name(one.value)}
    return found


def _is_name(value: object) -> bool:
    return isinstance(value, str) and value.isupper() and value.replace("_", "").isalnum()
