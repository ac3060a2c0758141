"""The reference: a page for every public name, from its docstring."""

import griffe

from experiments.harness import pages
from experiments.harness.machine import ROOT

PACKAGE = "adopt_hf"
FOLDER, OF_MODULES = "reference/names", "reference/modules"
MODULES = {  # those with names for users, besides the package itself
    "adopt_hf.integrations.checkpoints": "complete checkpoints, and what to resume from",
    "adopt_hf.integrations.deepspeed": "a DeepSpeed config that works",
    "adopt_hf.memory": "bytes of optimizer state",
    "adopt_hf.integrations.axolotl": "the plugin for axolotl",
}


def public_names() -> list[str]:
    """Return the names of `adopt_hf.__all__`, without importing the package."""
    return sorted(griffe.load(PACKAGE, search_paths=[ROOT]).exports or (), key=str.lower)


def texts() -> dict[str, str]:
    """Return the pages of the names and of the modules, and the page that lists them."""
    package = griffe.load(PACKAGE, search_paths=[ROOT], resolve_aliases=True)
    rows, made = [], {}
    for name in public_names():
        full = f"{PACKAGE}.{name}"
        docstring = package[name].docstring
        first = docstring.value.split("\n\n")[0].replace("\n", " ") if docstring else "The version of the package."
        rows.append([f"[`{name}`](names/{name}.md)", first])
        made[f"{FOLDER}/{name}.md"] = f"---\ntitle: {name}\n---\n\n" + (
            f"::: {full}\n" if docstring else f"# `{full}`\n\n{first} Here it is {package[name].value}.\n"
        )
    for module, words in MODULES.items():
        rows.append([f"[`{module}`](modules/{module}.md)", f"{words[0].upper()}{words[1:]}."])
        exports = griffe.load(module, search_paths=[ROOT]).exports
        members = f"    options:\n      members: [{', '.join(map(str, exports))}]\n" if exports else ""
        made[f"{OF_MODULES}/{module}.md"] = (
            f"---\ntitle: {module.removeprefix('adopt_hf.')}\n---\n\n::: {module}\n{members}"
        )
    made["reference/index.md"] = (
        "# Public names\n\nEverything that `import adopt_hf` offers, and the modules with names for users. "
        "The pages are made of the docstrings.\n\n" + pages.table(["name", "what it is"], rows) + "\n"
    )
    return made
