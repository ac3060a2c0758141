"""The page of the results: one HTML file that needs no network, for wide and narrow windows, light and dark."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from adopt_hf.commands.compare.page import figures, sections, tables
from adopt_hf.commands.compare.page.marked import Marked

STYLE = Path(__file__).parent / "style.css"


def page(found: Mapping[str, Any]) -> str:
    """Return the page of what results.json holds, and of nothing else."""
    marked = Marked(found)
    parts = [
        sections.top(found, marked),
        sections.optimizers(found, marked),
        sections.differences(found, marked),
        figures.curves(found),
        figures.learning_rates(found, marked),
        tables.numbers(found, marked),
        tables.runs(found, marked),
        tables.how(found, marked),
    ]
    title = escape(found["verdicts"][0]["sentence"])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
{"".join(part for part in parts if part)}</main>
</body>
</html>
"""
