"""The page in headless Chromium: as it looks, as it is used, as it is heard."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest
from pydantic import TypeAdapter

from sgsd.report.certificate import Certificate, write_page
from sgsd.validation import validated

from .certificates import make_certificate
from .folders import HOSTILE

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; as root, `make browser` installs Debian's")

DESKTOP, PHONE = (1280, 900), (390, 844)
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
TOKENS = ".tokens [role=option]"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def visit(browser, page):
    """``visit(size=…, scheme=…, file=…)`` opens the page, or another; complaints and requests fail the test."""
    contexts, complaints = [], []

    def opened(size=DESKTOP, scheme="light", file=page):
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(f"console {message.type}: {message.text}"))
        tab.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        tab.on("request", lambda request: request.url == file.as_uri() or complaints.append(f"request: {request.url}"))
        tab.goto(file.as_uri())
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def violations(tab) -> list[tuple[str, str]]:
    """(rule, where) of all that axe-core finds."""
    found = axe.Axe().run(tab, options={"runOnly": RULES, "resultTypes": ["violations"]}).response["violations"]
    return [(one["id"], one["nodes"][0]["html"][:200]) for one in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_charts_are_drawn_and_axe_finds_no_violation_with_everything_open(visit, size, scheme):
    tab = visit(size, scheme)
    tab.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
    tab.wait_for_function("[...document.querySelectorAll('.rollout')].every(one => one.dataset.filled)")
    charts = tab.query_selector_all(".chart svg")
    assert len(charts) == 7
    for chart in charts:
        assert chart.bounding_box()["width"] > 200
        # A marker or clip path of another chart, or a colour that the theme does not have, would leave a line out.
        strokes = chart.eval_on_selector_all(
            "path[clip-path][stroke^=var]", "lines => lines.map(line => getComputedStyle(line).stroke)"
        )
        assert strokes
        assert "none" not in strokes
        assert len(set(strokes)) == len(strokes)
    assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]
    scale = "text => text.getBoundingClientRect().height / text.getBBox().height"
    size_of_text = 12 * tab.locator(".chart text").first.evaluate(scale)
    assert size_of_text >= 9
    colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == {"light": "rgb(246, 247, 249)", "dark": "rgb(16, 20, 26)"}[scheme]
    assert violations(tab) == []


def test_choosing_another_teacher_changes_the_colours_and_what_is_said(visit):
    rollout = visit().locator(".rollout").first
    tokens, about = rollout.locator(TOKENS), rollout.locator(".about")
    classes = "tokens => tokens.map(token => token.className)"
    style = "token => [getComputedStyle(token).backgroundColor, getComputedStyle(token).borderBottomStyle]"
    before, said, (colour, line) = tokens.evaluate_all(classes), about.inner_text(), tokens.first.evaluate(style)
    assert set(before[:-1]) <= {"token p1", "token p2", "token p3"}
    assert before[-1] == "token uncounted"
    rollout.locator("select").select_option("1")
    after, (other_colour, other_line) = tokens.evaluate_all(classes), tokens.first.evaluate(style)
    assert set(after[:-1]) <= {"token n1", "token n2", "token n3"}
    assert colour != other_colour
    assert line == "solid"  # the sign shows without colour
    assert other_line in ("dashed", "double")
    assert about.inner_text() != said
    assert "suppresses, polarity negative" in about.inner_text()
    assert about.get_attribute("aria-live") == "polite"
    assert "gap −" in tokens.first.get_attribute("aria-label")


def test_everything_works_by_keyboard_alone(visit):
    tab = visit()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the results"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    select = tab.locator(".rollout select").first
    select.focus()
    tab.keyboard.press("ArrowDown")
    assert select.input_value() == "1"
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.getAttribute('role')") == "option"
    for key, place in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 13), ("Home", 0)):
        tab.keyboard.press(key)
        focused = "[...document.activeElement.parentElement.children].indexOf(document.activeElement)"
        assert tab.evaluate(focused) == place
    assert tab.locator(".rollout .detail").first.inner_text().startswith("Token 1 of 14, “ word0”: gap −")
    tab.keyboard.press("Tab")  # one stop for all tokens of a rollout
    assert tab.evaluate("document.activeElement.tagName") == "SUMMARY"
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_a_heading_sorts_its_column(visit):
    table = visit().locator("table.sortable").first
    for name, column in (("uses", 2), ("credit", 3), ("support, success", 8)):
        figures = f"rows => rows.map(row => parseFloat(row.cells[{column}].textContent.replace('−', '-')) || -1e9)"
        for press, reverse in ((None, True), ("Enter", False)):
            button = table.get_by_role("button", name=name, exact=True)
            button.press(press) if press else button.click()
            values = table.locator("tbody tr").evaluate_all(figures)
            assert values == sorted(values, reverse=reverse)
            assert table.locator("th[aria-sort]").get_attribute("aria-sort") == (
                "descending" if reverse else "ascending"
            )
    table.get_by_role("button", name="item").click()
    assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"


def test_levels_of_colour_begin_where_the_legend_says_and_hostile_text_is_shown_and_never_run(visit):
    tab = visit()
    found = tab.evaluate("[-1, -0.99, -0.2, -0.05, -0.049, 0, 0.049, 0.05, 0.2, 0.99, 1, 9].map(colourOf)")
    assert found == ["n3", "n2", "n2", "n1", "", "", "", "p1", "p2", "p2", "p3", "p3"]
    assert "</script><img src=x onerror=alert(1)>" in tab.locator(".rollout .tokens").first.inner_text()
    assert tab.locator("main img, main script").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("text", ["", HOSTILE + "w" * 120], ids=["plain", "hostile"])
def test_a_certificate_fits_its_bars_are_true_and_axe_finds_no_violation(visit, tmp_path, text, size, scheme):
    document = validated(TypeAdapter(Certificate), make_certificate(text=text), "the sample")
    tab = visit(size, scheme, write_page(document, tmp_path / "certificate.html"))
    assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]
    widths = "rects => rects.map(one => one.getBoundingClientRect().width / one.parentNode.clientWidth)"
    assert tab.locator("section:first-of-type .bars rect").evaluate_all(widths)[:4] == (
        pytest.approx([0.21, 0.9, 0.33, 0.88], abs=0.01)
    )
    assert tab.locator("main img, main script").count() == 0
    assert violations(tab) == []
    if not text:
        assert len(re.findall(rb"/Type\s*/Page\b", tab.pdf(format="A4"))) <= 3
