"""The parts of the site: its nav, the messages read from the source, links, lists and equations."""

import inspect
import re
from pathlib import Path

import pytest
import yaml
from transformers.utils import generic

from adopt_hf.hyperparameters import HYPERPARAMETERS
from adopt_hf.integrations.transformers.names import NAMES
from experiments.site import gfm, message_pages, messages, settings, tree

ROOT = Path(__file__).parents[2]
OF_OTHERS = {  # a quote that is another library's message -> the source, and the message there
    "adopt is not a valid OptimizerNames, please select one of …": (
        inspect.getsource(generic),
        "{value} is not a valid {__name__}, please select one of …",
    ),
}


class _Loader(yaml.SafeLoader):
    """A loader that takes the tags of mkdocs for nothing."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def in_nav(entry: object) -> list[str]:
    """Return the pages and folders of a nav."""
    if isinstance(entry, str):
        return [entry]
    return [one for part in (entry.values() if isinstance(entry, dict) else entry) for one in in_nav(part)]


def test_each_page_of_the_docs_is_in_the_nav_once() -> None:
    """If this fails: add the page to `nav` of mkdocs.yml."""
    nav = in_nav(yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), _Loader)["nav"])
    written = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert written - set(nav) == set()
    assert set(tree.MOVED.values()) - set(nav) == set()
    assert len(nav) == len(set(nav))


def test_each_quoted_message_is_in_the_code() -> None:
    texts = [message.text for message in messages.messages()]
    quoted = [quote for entry in message_pages.entries() for quote in entry.quotes]
    assert len(quoted) > 50
    unknown = {quote for quote in quoted if not any(message_pages.quotes(quote, text) for text in texts)}
    assert {message_pages.KIND.sub("", quote) for quote in unknown} == set(OF_OTHERS)
    for quote, (source, text) in OF_OTHERS.items():
        assert text in {found for _, found, _ in messages.in_source(source)}
        assert re.fullmatch(re.sub(r"\\{\w+\\}|…", ".+", re.escape(text)), quote)


def test_each_warning_has_a_remedy() -> None:
    """If this fails: add a section to docs/troubleshooting.md that quotes the warning."""
    quoted = [quote for entry in message_pages.entries() for quote in entry.quotes]
    warnings = [message.text for message in messages.messages() if message.kind == "Warning"]
    assert len(warnings) > 10
    assert [text for text in warnings if not any(message_pages.quotes(quote, text) for quote in quoted)] == []


def test_a_quote_that_is_not_in_the_code_is_found() -> None:
    (text,) = {
        message.text for message in messages.messages() if message.text.startswith("ADOPT does not support sparse")
    }
    assert message_pages.quotes("RuntimeError: ADOPT does not support sparse gradients …", text)
    assert message_pages.quotes("ADOPT does not support … gradients (got … for a parameter …", text)
    assert not message_pages.quotes("RuntimeError: ADOPT does not support dense gradients …", text)


def test_messages_of_every_kind_are_read() -> None:
    source = '''
LIMIT = "at most three words"

def f(name, value):
    """A docstring of several words."""
    if not name:
        raise ValueError(f"{name} must be short: {LIMIT}, got {value.shape!r} " + ("(all)" if value else ""))
    logger.warning("%s is slow, %.0f %% in the mean", name, 5)
    reason = f"there is no file {name}"
    raise OSError(reason) from None
'''
    assert sorted(messages.in_source(source), key=lambda one: (one[0] == "", one[2])) == [
        ("ValueError", "{name} must be short: at most three words, got {shape} (all)", 7),
        ("Warning", "… is slow, … % in the mean", 8),
        ("OSError", "there is no file {name}", 10),
        ("", "at most three words", 2),
        ("", "there is no file {name}", 9),
    ]


def test_each_message_has_a_page_and_each_part_a_message() -> None:
    found = {message_pages.part_of(message) for message in messages.messages()}
    assert found == set(message_pages.PARTS)
    kinds = {message.kind for message in messages.messages()}
    assert {"ValueError", "RuntimeError", "Warning", "Information", ""} <= kinds


def test_each_environment_variable_that_is_read_is_explained() -> None:
    read = settings.variables_read()
    assert {"ADOPT_HF_CACHE", "ADOPT_HF_REGISTER", "CC"} <= read
    assert read - set(settings.VARIABLES) == set()


def test_each_option_and_each_name_for_optim_has_a_section() -> None:
    page = settings.options()
    assert re.findall(r"^### `(\w+)`$", page, re.MULTILINE) == sorted(
        HYPERPARAMETERS, key=lambda name: list(settings.KINDS).index(HYPERPARAMETERS[name].kind)
    )
    assert tuple(settings.BUILDS) == NAMES
    assert "beta1 must be a number in [0, 1), got ..." in page


@pytest.mark.parametrize(
    ("link", "file", "page", "expected"),
    [
        ("../README.md#settings", "docs/glossary.md", "glossary.md", "index.md#settings"),
        ("docs/backends.md", "README.md", "index.md", "backends.md"),
        ("../adopt_hf/algorithm.py", "docs/glossary.md", "glossary.md", "source/adopt_hf/algorithm.py.md"),
        ("../accelerate_configs", "examples/gpt2_pretraining/README.md", "recipes/gpt2_pretraining.md", None),
        ("adopt_hf/plan/kept.py", "PAGE", "concepts/patches.md", "../source/adopt_hf/plan/kept.py.md"),
        ("https://arxiv.org/abs/2411.02853", "README.md", "index.md", "https://arxiv.org/abs/2411.02853"),
    ],
)
def test_a_link_leads_to_a_page_of_the_site(link: str, file: str, page: str, expected: str | None) -> None:
    expected = expected or "../source/examples/accelerate_configs/index.md"
    assert tree.rewritten(f"see [this]({link}).", file, page) == f"see [this]({expected})."


def test_what_pages_link_to_becomes_a_page() -> None:
    needed = tree.files_needed({"index.md": "[a](examples/accelerate_configs) [b](docs/defaults/differences.png)"})
    assert "source/examples/accelerate_configs/index.md" in needed
    assert "fsdp_version: 2" in str(needed["source/examples/accelerate_configs/fsdp2.yaml.md"])
    assert "defaults/differences.png" not in needed, "mkdocs copies it by itself"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("text:\n- one\n- two", "text:\n\n- one\n- two"),
        ("text\n2. of it", "text\n2. of it"),
        ("1. one\n\n   | a |\n\n   more\n2. two", "1. one\n\n    | a |\n\n    more\n\n2. two"),
        ("- one\n  of it\n\n  more\n\nafter", "- one\n    of it\n\n    more\n\nafter"),
        ("- one:\n\n      code --all\n\n- two", "- one:\n\n        code --all\n\n- two"),
        ("```\ntext\n- code\n```", "```\ntext\n- code\n```"),
        ("- one\n    - inner\n- two", "- one\n    - inner\n- two"),
    ],
)
def test_lists_are_written_as_python_markdown_wants_them(written: str, expected: str) -> None:
    assert gfm.for_python_markdown(written) == expected


def test_equations_become_mathml() -> None:
    maths = pytest.importorskip("experiments.site.maths", reason="the tools of the site want Python 3.11")
    markdown = pytest.importorskip("markdown")
    assert maths.block(r"\theta \leftarrow \theta - \eta m").startswith('<div class="math"><math ')
    made = markdown.markdown("the rate $`\\beta_2`$ of `x_1`", extensions=[maths.InlineMaths()])
    assert re.fullmatch(r"<p>the rate <math .*<msub>.*</math> of <code>x_1</code></p>", made)
