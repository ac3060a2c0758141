"""The page in a browser without a network: the numbers of results.json, on a screen and a phone, light and dark."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adopt_hf.commands.compare import results
from adopt_hf.commands.compare.page import page
from adopt_hf.commands.compare.page.svg import linear
from adopt_hf.commands.compare.plan import Plan, Run, swept
from tests.support.comparisons import PLAN, all_finished, failed

CHROMIUM = Path("/usr/bin/chromium")
PHONE, SCREEN = {"width": 375, "height": 800}, {"width": 1280, "height": 900}
PLACES = ("phone, light", "phone, dark", "screen, light", "screen, dark")
UNITS = {"MiB": 2**20, "GiB": 2**30}


def broken() -> dict[str, Any]:
    done = all_finished()
    lines = ["Traceback (most recent call last):", "x" * 250, "<script>alert(1)</script> ValueError: \"a\" & 'b'"]
    done[Run("adopt", 3e-3, 1)] = failed(*lines)
    del done[Run("adopt", 3e-3, 2)]
    for row in done.values():
        row["shared"] = True
    diverged = done[Run("adamw_torch_fused", 3e-3, 0)]
    diverged["curves"] = {name: [*points[:-1], (400, None)] for name, points in diverged["curves"].items()}
    return results.results(PLAN, done, 2)


def of(plan: Plan, **more: Any) -> dict[str, Any]:
    return results.results(plan, all_finished(plan, **more), 1)


ONE = PLAN._replace(lrs=(1e-3,), seeds=1, optims=("adopt", "adamw_torch_fused", "sgd"))
CASES = {
    "three rates": lambda: of(PLAN),
    "a sweep": lambda: of(PLAN._replace(lrs=swept([1e-3]), is_sweep=True, seeds=2)),
    "one seed": lambda: of(ONE),
    "broken": broken,
    "nothing yet": lambda: results.results(PLAN, {}, 1),
    "one optimizer": lambda: of(PLAN._replace(optims=("adopt",))),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    if not CHROMIUM.is_file():
        pytest.skip(f"no browser: {CHROMIUM} is Debian's package chromium")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield found
        found.close()


def opened(browser: Any, path: Path, found: dict[str, Any], scheme: str, size: dict[str, int]) -> Any:
    """Open the page. Any request but the one for the file is an error, and so is what a script says."""
    file = path / "report.html"
    file.write_text(page(json.loads(json.dumps(found))), encoding="utf-8")
    context = browser.new_context(viewport=size, color_scheme=scheme, offline=True)
    tab = context.new_page()
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: asked.append(str(error)))
    tab.on("console", lambda message: asked.append(message.text))
    tab.goto(file.as_uri())
    assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()]
    return tab


def at(found: Any, path: str) -> Any:
    for word in path.split("."):
        found = found[int(word)] if isinstance(found, list) else found[word]
    return found


def shown_is(text: str, value: float) -> bool:
    """Return whether a text is the number to the digits that it has."""
    match = re.fullmatch(r"([-+]?[\d,]+(?:\.(\d+))?)(?:e(-?\d+))?(?: (MiB|GiB))?", text)
    assert match, text
    digits, places, exponent, unit = match.groups()
    size = 10.0 ** int(exponent or 0) * UNITS.get(unit, 1)
    return abs(float(digits.replace(",", "")) * size - value) <= 0.5000001 * size * 10.0 ** -len(places or "")


def slow_but(first: str, names: Iterable[str]) -> list[Any]:
    """Return the parameters, of which the everyday tests run the first only: a page takes the browser a second."""
    return [name if name == first else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.everyday
@pytest.mark.parametrize("case", slow_but("broken", CASES))
def test_each_number_is_that_of_results_json(case: str, browser: Any, tmp_path: Path) -> None:
    found = CASES[case]()
    tab = opened(browser, tmp_path, found, "light", SCREEN)
    numbers = tab.eval_on_selector_all("data", "all => all.map(e => [e.dataset.path, e.value, e.textContent])")
    assert len(numbers) >= 2
    for path, value, text in numbers:
        assert float(value) == at(found, path), path
        assert shown_is(text, at(found, path)), (path, text)
    paths = {path for path, _, _ in numbers}
    for i, setting in enumerate(found["settings"]):
        for name in ("final", "best", "step_ms"):
            for part in ("mean", "half"):
                if setting[name][part] is not None and not setting["diverged"]:
                    assert f"settings.{i}.{name}.{part}" in paths
        for name in ("steps_to_reference", "peak_bytes", "spikes"):
            assert setting[name] is None or f"settings.{i}.{name}" in paths
    body = tab.inner_text("body")
    for one in found["verdicts"]:
        assert " ".join(one["sentence"].split()) in " ".join(body.split())
    tab.context.close()


@pytest.mark.everyday
@pytest.mark.parametrize(
    "where", slow_but("phone, dark", ("phone, light", "phone, dark", "screen, light", "screen, dark"))
)
def test_it_fits_and_can_be_read(where: str, browser: Any, tmp_path: Path) -> None:
    device, scheme = where.split(", ")
    size = {"phone": PHONE, "screen": SCREEN}[device]
    tab = opened(browser, tmp_path, broken(), scheme, size)
    tab.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= size["width"]
    outside = tab.evaluate(
        """() => [...document.querySelectorAll('body *')].filter(e => !e.closest('svg') && !e.closest('.track')
            && e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML.slice(0, 200))"""
    )
    assert outside == []
    small = tab.evaluate(
        """() => [...document.querySelectorAll('p, li, td span, dt, dd, h1, h2, pre, small, text')].filter(e => {
            const box = e.getBoundingClientRect();
            if (!box.width) return false;
            const svg = e.closest('svg');
            const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
            return parseFloat(getComputedStyle(e).fontSize) * scale < 11.5;
        }).map(e => e.outerHTML.slice(0, 200))"""
    )
    assert small == []
    pale = [name for name in ("body", ".muted", ".bad", ".half", "dt") if contrast(tab, name) < 4.5]
    assert pale == []
    dark = luminance(tab.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.1
    assert dark == (scheme == "dark")
    tab.context.close()


def luminance(color: str) -> float:
    parts = [int(x) / 255 for x in re.findall(r"\d+", color)[:3]]
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(tab: Any, selector: str) -> float:
    """Return the contrast of a text with the page, as WCAG defines it."""
    text = luminance(tab.eval_on_selector(selector, "e => getComputedStyle(e).color"))
    behind = luminance(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    return (max(text, behind) + 0.05) / (min(text, behind) + 0.05)


def test_what_a_script_has_printed_is_text() -> None:
    text = page(broken())
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; ValueError" in text


def test_what_shared_the_machine_and_what_has_one_seed_is_said() -> None:
    shared, one = page(broken()), page(of(ONE))
    assert "Runs shared the machine (--jobs), so their times say nothing" in shared
    assert "ms; these runs" not in shared
    assert "One pair of runs gives no interval" in one
    assert "There is one seed, so no interval" in one
    assert "±" not in one.replace("± is", "")


def test_a_curve_ends_at_the_final_loss() -> None:
    """The line of the mean, read back from the chart, ends at the mean of the final losses."""
    found = of(ONE)
    text = page(found)
    chart = re.search(r'<div class="wide">(<svg.*?</svg>)', text, re.DOTALL)
    assert chart is not None
    lines = re.findall(r'<polyline class="line c(\d)[^"]*" points="([^"]*)"', chart.group(1))
    ticks = re.findall(r'class="tick" x="38" y="([\d.]+)"[^>]*>([\d.]+)<', chart.group(1))
    (y0, v0), (y1, v1) = ((float(y) - 4, float(v)) for y, v in (ticks[0], ticks[-1]))
    for color, points in lines:
        y = float(points.split()[-1].split(",")[1])
        final = found["settings"][int(color)]["final"]["mean"]
        assert v0 + (y - y0) * (v1 - v0) / (y1 - y0) == pytest.approx(final, abs=0.01)


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0, 400, ["0", "100", "200", "300", "400"]),
        (2.9, 3.4, ["3.0", "3.2", "3.4"]),
        (0.001, 0.0019, ["0.00100", "0.00125", "0.00150", "0.00175"]),
        (0, 12000, ["0", "5,000", "10,000"]),
        (2.0, 2.0, ["1.50", "1.75", "2.00", "2.25", "2.50"]),
    ],
)
def test_axes_have_round_numbers(low: float, high: float, texts: list[str]) -> None:
    assert [text for _, text in linear(low, high).ticks] == texts
