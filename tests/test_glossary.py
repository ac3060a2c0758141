"""The glossary: each term is defined once, in the order of the alphabet, and the pages or the docstrings use it."""

import re
from pathlib import Path

from experiments.pages import registry

ROOT = Path(__file__).parents[1]
GLOSSARY = ROOT / "docs" / "glossary.md"
ENTRIES = re.findall(r"^### (.*)\n\n((?:.+\n)+)", GLOSSARY.read_text(encoding="utf-8"), re.MULTILINE)


def used(term: str, texts: list[str]) -> bool:
    """Return whether one of the texts has the term, in the singular or the plural, across line breaks too."""
    words = re.compile(rf"\b{re.escape(term)}s?\b".replace(r"\ ", r"[\s#]+"), re.IGNORECASE)
    return any(words.search(text) for text in texts)


def test_each_term_is_defined_once_in_order() -> None:
    terms = [term for term, _ in ENTRIES]
    assert len(terms) == GLOSSARY.read_text(encoding="utf-8").count("\n### ")
    assert terms == sorted(set(terms), key=str.lower)


def test_each_term_is_used() -> None:
    pages = [page for page in registry.pages(ROOT) if page != GLOSSARY]
    texts = [path.read_text(encoding="utf-8") for path in [*pages, *(ROOT / "adopt_hf").rglob("*.py")]]
    assert [term for term, _ in ENTRIES if not used(term, texts)] == []
    assert not used("a term that nothing has", texts)
    assert used("step count", ["its step\n  counts"])
