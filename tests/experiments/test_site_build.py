"""The site as `make site` builds it: strict, whole, offline, and found by its search in a real browser."""

import contextlib
import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from adopt_hf.hyperparameters import HYPERPARAMETERS
from adopt_hf.integrations.transformers.names import NAMES
from experiments.launches.matrix import MODES, NOT_HERE
from experiments.site import message_pages, messages, tree
from tests.support.processes import environment
from tests.support.site import dead_links, loads_from_elsewhere

pytest.importorskip("mkdocs", reason="the tools of the site want Python 3.11")
names = pytest.importorskip("experiments.site.names", reason="the tools of the site want Python 3.11")
html = pytest.importorskip("lxml.html")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MODE_NAMES = [*dict.fromkeys(mode.config for mode in MODES), *(name.split()[0] for name in NOT_HERE)]
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
LOOKED_AT = ("index", "algorithm", "integrations", "benchmarks", "reference/options", "reference/messages/states")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built from this tree. A warning of mkdocs is an error."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=environment({"NO_MKDOCS_2_WARNING": "1"}),
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture(scope="module")
def trees(site: Path) -> dict[str, Any]:
    """The parsed HTML of each page, by its path in the site."""
    pages = {str(path.relative_to(site)): html.parse(str(path)).getroot() for path in sorted(site.rglob("*.html"))}
    return {name: page for name, page in pages.items() if name != "404.html"}  # its links begin at the host's root


@pytest.fixture(scope="module")
def sections(site: Path) -> list[dict[str, str]]:
    """The sections in the index of the search."""
    found: list[dict[str, str]] = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))[
        "docs"
    ]
    return found


def plain(text: str) -> str:
    """Return the words of a text or of HTML, without what is filled in and without marks."""
    shown = html.fromstring(f"<div>{text}</div>").text_content() if "<" in text and ">" in text else text
    return " ".join(re.findall(r"\w+", re.sub(r"\{\w+\}", "", shown)))


# -- what is there -----------------------------------------------------------------------------------------------------


def test_every_public_name_has_a_page(trees: dict[str, Any]) -> None:
    import adopt_hf

    assert names.public_names() == sorted(adopt_hf.__all__, key=str.lower)
    for name in adopt_hf.__all__:
        (heading,) = trees[f"reference/names/{name}.html"].xpath("//article//h1")
        assert f"adopt_hf.{name}" in heading.text_content()
        (row,) = trees["reference/index.html"].xpath(f"//article//a[@href='names/{name}.html']")
        assert row.text_content() == name


def test_the_signatures_have_the_defaults(trees: dict[str, Any]) -> None:
    signature = trees["reference/names/ADOPTW.html"].xpath("//article//pre")[0].text_content()
    assert "beta2_warmup: bool | float = True" in signature
    assert "lr: float | Tensor = 0.001" in signature
    assert "DEFAULTS" not in signature


def test_every_option_mode_and_message_is_in_the_index_of_the_search(sections: list[dict[str, str]]) -> None:
    titles = {(section["location"].split("#")[0], plain(section["title"])) for section in sections}
    for option in HYPERPARAMETERS:
        assert ("reference/options.html", option) in titles
    for mode in MODE_NAMES:
        assert ("reference/launch_modes.html", mode) in titles
    texts: dict[str, str] = {}
    for section in sections:
        page = section["location"].split("#")[0]
        texts[page] = texts.get(page, "") + f" {plain(section['title'])} {plain(section['text'])}"
    for name in NAMES:
        assert name in texts["reference/options.html"]
    missing = [
        message.text
        for message in messages.messages()
        if plain(message.text.replace("<", "").replace(">", ""))
        not in texts[f"reference/messages/{message_pages.part_of(message)}.html"]
    ]
    assert missing == []


def test_the_blocks_are_those_that_github_shows(trees: dict[str, Any]) -> None:
    """Lists, tables and headings are counted by CommonMark's rules and in the page."""
    markdown_it = pytest.importorskip("markdown_it")
    reader = markdown_it.MarkdownIt("commonmark").enable("table")
    pages = [*tree.MOVED, *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
    for page in pages:
        here = html.fromstring(f"<div>{reader.render((ROOT / page).read_text(encoding='utf-8'))}</div>")
        (there,) = trees[re.sub(r"README\.html$", "index.html", tree.place(page).replace(".md", ".html"))].xpath(
            "//article"
        )
        for tag in ("h1", "h2", "h3", "ul", "ol", "li", "table", "tr"):
            assert (page, tag, len(there.xpath(f".//{tag}"))) == (page, tag, len(here.xpath(f".//{tag}")))


# -- where it leads ----------------------------------------------------------------------------------------------------


def test_no_link_and_no_anchor_is_dead(site: Path, trees: dict[str, Any]) -> None:
    assert len(trees) > 100
    assert dead_links(site, trees) == []


def test_a_dead_link_is_found(site: Path) -> None:
    root = html.fromstring(
        '<a href="index.html#nothing">x</a><a href="nothing.html">x</a><a href="https://a.org">x</a>'
    )
    assert sorted(dead_links(site, {"a.html": root, "index.html": html.fromstring("<p id='there'>x</p>")})) == [
        "a.html: index.html#nothing",
        "a.html: nothing.html#",
    ]


def test_nothing_is_loaded_from_another_host(site: Path, trees: dict[str, Any]) -> None:
    assert {page: found for page, root in trees.items() if (found := loads_from_elsewhere(root))} == {}
    for style in site.rglob("*.css"):
        addresses = re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')\s]+)", style.read_text(encoding="utf-8"))
        assert [address for address in addresses if urlsplit(address).netloc] == [], style
    planted = (
        '<link rel="preconnect" href="https://fonts.gstatic.com"><script src="//unpkg.com/x"></script><img src="a.png">'
    )
    assert loads_from_elsewhere(html.fromstring(planted)) == ["//unpkg.com/x", "https://fonts.gstatic.com"]


def test_equations_are_typeset(trees: dict[str, Any]) -> None:
    (article,) = trees["algorithm.html"].xpath("//article")
    assert len(article.xpath(".//math[@display='block']")) >= 4
    assert article.xpath(".//math[not(@display='block')]")


# -- in a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    """The address of a server of the site."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


Open = Callable[..., contextlib.AbstractContextManager[Any]]


@pytest.fixture
def opened(served: str) -> Iterator[Open]:
    """A page of Chromium without a network. A request to another host or an error of a script fails the test."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    wrong: list[str] = []

    @contextlib.contextmanager
    def page(size: tuple[int, int] = WIDTHS["desktop"], scheme: str = "light") -> Iterator[Any]:
        with contextlib.closing(
            browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        ) as of:
            tab = of.new_page()

            def answer(route: Any) -> None:
                address = route.request.url
                if address.startswith((served, "file://", "data:", "blob:")):
                    route.continue_()
                else:
                    wrong.append(address)
                    route.abort()

            of.route("**/*", answer)
            tab.on("pageerror", lambda error: wrong.append(str(error)))
            tab.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
            yield tab

    with playwright.sync_playwright() as chrome:
        browser = chrome.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield page
        browser.close()
    assert wrong == []


RESULTS = r"""wanted => {
    const found = [...document.querySelectorAll(".md-search-result__link")]
        .slice(0, 8).map(one => one.getAttribute("href").replace(/\?h=[^#]*/, ""))
    return found.some(one => one.includes(wanted))
}"""


def search(tab: Any, words: str, wanted: str) -> bool:
    """Type into the search, and return whether one of the first eight results has the address `wanted`."""
    tab.fill(".md-search__input", words)
    tab.press(".md-search__input", "End")
    end = time.monotonic() + 10
    while not (found := tab.evaluate(RESULTS, wanted)) and time.monotonic() < end:
        tab.wait_for_timeout(50)
    return bool(found)


QUERIES = {  # typed words -> the place of one of the first results
    **{name: f"reference/options.html#{name}" for name in HYPERPARAMETERS},
    **{mode: f"reference/launch_modes.html#{mode}" for mode in MODE_NAMES},
    "adopt is not a valid OptimizerNames": "troubleshooting.html#adopt-is-not-a-valid-optimizernames",
    "optim_args: unknown key 'beta3' (did you mean 'beta2'?)": "messages/trainer.html#optim_args-unknown-key",
    "beta1 must be a number in [0, 1), got 1.5": "reference/options.html#beta1",
    "adopt-hf memory": "reference/commands.html#adopt-hf-memory",
    "LayerwiseADOPTW": "reference/names/LayerwiseADOPTW.html",
}
FROM_FILES = ("state_bits", "zero3_offload_parameters", "adopt is not a valid OptimizerNames", "LayerwiseADOPTW")


def said() -> dict[str, str]:
    """Return some of the messages as a user sees them, with the page of each."""
    whole = [one for one in messages.messages() if one.kind and len(plain(one.text).split()) > 8]
    return {re.sub(r"\{\w+\}|…", "7", one.text): f"messages/{message_pages.part_of(one)}.html#" for one in whole[::12]}


@pytest.mark.parametrize("kind", ["served", "file"])
def test_the_search_finds_options_modes_and_messages(opened: Open, served: str, site: Path, kind: str) -> None:
    """A browser that has opened the site as files, without a server, finds them, too."""
    queries = {**QUERIES, **said()} if kind == "served" else {name: QUERIES[name] for name in FROM_FILES}
    assert len(said()) > 10
    with opened() as tab:
        tab.goto(f"{served}/index.html" if kind == "served" else (site / "index.html").as_uri())
        tab.click(".md-search__input")
        for words, wanted in queries.items():
            assert search(tab, words, wanted), words
        search(tab, "LayerwiseADOPTW", "reference/names/LayerwiseADOPTW.html")
        tab.press(".md-search__input", "Enter")
        tab.wait_for_url("**/LayerwiseADOPT*.html*")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_the_screen(opened: Open, served: str, width: str, scheme: str) -> None:
    """Tables and code that are wider scroll within themselves."""
    with opened(WIDTHS[width], scheme) as tab:
        for page in LOOKED_AT:
            tab.goto(f"{served}/{page}.html")
            assert tab.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width][0], page
            shown = tab.evaluate("document.body.getAttribute('data-md-color-scheme')")
            assert shown == {"light": "default", "dark": "slate"}[scheme]
        tab.goto(f"{served}/algorithm.html")
        box = tab.locator(".math math").first.bounding_box()
        assert box["width"] > 100
        assert box["height"] > 15
