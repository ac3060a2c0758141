"""The page of the patches: a section for each row of the tables of the package."""

from adopt_hf import integrations


def texts() -> dict[str, str]:
    """Return the page of the patches."""
    parts = [
        "# Patches\n\nFunctions of other packages that `import adopt_hf` replaces, because they have no public way to "
        "do what ADOPT needs. [The table](docs/integrations.md#functions-of-other-packages-that-are-replaced) is "
        "shorter. It says when they are replaced and how they are put back. `adopt-hf env` lists which are in place.\n"
    ]
    for package, patched in integrations.PATCHED.items():
        parts.append(f"## {package}\n")
        for patch in patched.patches:
            needed = "ADOPT works without this patch." if patch.optional else "ADOPT needs this patch."
            parts.append(
                f"### `{patch.target}`\n\n"
                f"- **Without it**: {patch.issue}\n- **Why here**: {patch.why}\n- **No longer necessary when**: "
                f"{patch.remove_when}\n- **Parameters that the function must have**: `{patch.takes}`\n\n{needed}\n"
            )
    return {"concepts/patches.md": "\n".join(parts)}
