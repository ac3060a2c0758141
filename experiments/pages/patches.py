"""The functions of other packages that are replaced, from the rows of `adopt_hf.integrations.PATCHED`."""

from collections.abc import Callable

from adopt_hf import integrations
from experiments.harness import pages


def table() -> str:
    """Return the table: each function with the reason for replacing it, and when that is no longer necessary."""
    rows = [
        (f"`{patch.target}`", patch.issue, patch.remove_when)
        for patched in integrations.PATCHED.values()
        for patch in patched.patches
    ]
    return pages.table(["function", "without the patch", "no longer necessary when"], rows)


TEXTS: dict[str, Callable[[], str]] = {"patches": table}
