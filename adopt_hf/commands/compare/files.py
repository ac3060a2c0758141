"""Write results.json, results.md and report.html, each in one piece."""

from typing import Any

from adopt_hf.commands.compare import page, results, table
from adopt_hf.commands.compare.folder import Folder, write, write_json
from adopt_hf.commands.compare.plan import Plan
from adopt_hf.commands.compare.runner import Runner

RESULTS, TABLE, PAGE = "results.json", "results.md", "report.html"


def write_all(folder: Folder, plan: Plan, runner: Runner) -> dict[str, Any]:
    """Write what is known so far, and return the results."""
    found = results.results(plan, runner.done, runner.jobs)
    write_json(folder.path / RESULTS, found)
    write(folder.path / TABLE, table.markdown(found))
    write(folder.path / PAGE, page.page(found))
    return found
