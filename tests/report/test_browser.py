"""The page in headless Chromium: as it looks, as it is used, as it is heard."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

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
# Any of a theme's colours will do to tell one theme from the other.
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def visit(browser, page):
    """``visit(size=…, scheme=…)`` opens the page and waits for its charts; complaints fail the test at its end."""
    contexts, complaints = [], []

    def opened(size=DESKTOP, scheme="light"):
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, reduced_motion="reduce"
        )
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(f"console {message.type}: {message.text}"))
        tab.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        tab.on("request", lambda request: request.url == page.as_uri() or complaints.append(f"request: {request.url}"))
        tab.goto(page.as_uri())
        tab.wait_for_function("document.documentElement.dataset.drawn === '1'")
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_figure_is_drawn_and_nothing_complains_or_asks_the_network(visit, size, scheme):
    tab = visit(size, scheme)
    charts = tab.query_selector_all(".chart")
    assert len(charts) >= 10
    for chart in charts:
        box = chart.query_selector("svg").bounding_box()
        assert box["width"] > 200
        assert box["height"] > 80
        marks = chart.eval_on_selector_all(
            "svg .role-mark path, svg .role-mark text",
            "marks => marks.filter(mark => mark.getBBox().width + mark.getBBox().height > 0).length",
        )
        assert marks > 0, chart.get_attribute("id")
    assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_no_violation_with_everything_open(visit, size, scheme):
    tab = visit(size, scheme)
    tab.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
    tab.wait_for_function("[...document.querySelectorAll('.rollout')].every(one => one.dataset.filled)")
    found = axe.Axe().run(tab, options={"runOnly": RULES, "resultTypes": ["violations"]}).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found] == []


def test_choosing_another_teacher_changes_the_colours_and_what_is_said(visit):
    tab = visit()
    rollout = tab.locator(".rollout").first
    classes = "tokens => tokens.map(token => token.className)"
    tokens, about = rollout.locator(".tokens [role=option]"), rollout.locator(".about")
    before, said = tokens.evaluate_all(classes), about.inner_text()
    assert any("p" in name.removeprefix("token ") for name in before[:-1])
    assert before[-1] == "token uncounted"
    colours = tokens.first.evaluate("token => getComputedStyle(token).backgroundColor")
    rollout.locator("select").select_option("1")
    after = tokens.evaluate_all(classes)
    assert all(name.removeprefix("token ").startswith("n") for name in after[:-1])
    assert tokens.first.evaluate("token => getComputedStyle(token).backgroundColor") != colours
    assert about.inner_text() != said
    assert "suppresses, polarity negative" in about.inner_text()
    assert about.get_attribute("aria-live") == "polite"
    assert "gap −" in tokens.first.get_attribute("aria-label")


def test_the_sign_of_a_gap_shows_without_colour(visit):
    tab = visit()
    tokens = tab.locator(".rollout").first.locator(".tokens [role=option]")
    style = "token => getComputedStyle(token).borderBottomStyle"
    assert tokens.first.evaluate(style) == "solid"
    tab.locator(".rollout select").first.select_option("1")
    assert tokens.first.evaluate(style) in ("dashed", "double")


def test_everything_works_by_keyboard_alone(visit):
    tab = visit()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the results"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    tab.locator(".rollout select").first.focus()
    tab.keyboard.press("ArrowDown")
    assert tab.locator(".rollout select").first.input_value() == "1"
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.getAttribute('role')") == "option"
    for key, place in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 13), ("Home", 0)):
        tab.keyboard.press(key)
        focused = "[...document.activeElement.parentElement.children].indexOf(document.activeElement)"
        assert tab.evaluate(focused) == place
    detail = tab.locator(".rollout .detail").first
    assert detail.inner_text().startswith("Token 1 of 14, “ word0”: gap −")
    tab.keyboard.press("Tab")  # one stop for all tokens of a rollout
    assert tab.evaluate("document.activeElement.tagName") == "SUMMARY"
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_the_theme_can_be_changed_and_charts_follow(visit):
    tab = visit(scheme="light")
    line = "document.querySelector('#accuracy svg .mark-line path').getAttribute('stroke')"
    background, stroke = tab.evaluate(BACKGROUND), tab.evaluate(line)
    button = tab.get_by_role("button", name="Dark theme")
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    tab.wait_for_function("document.documentElement.dataset.drawn === '2'")
    assert button.get_attribute("aria-pressed") == "true"
    assert tab.evaluate(BACKGROUND) != background
    assert tab.evaluate(line) != stroke
    dark = visit(scheme="dark")
    assert dark.evaluate(BACKGROUND) == tab.evaluate(BACKGROUND)


def test_a_heading_sorts_its_column(visit):
    tab = visit()
    table = tab.locator("table.sortable").first
    column = "rows => rows.map(row => Number(row.cells[3].textContent))"
    table.get_by_role("button", name="uses").click()
    falling = table.locator("tbody tr").evaluate_all(column)
    assert falling == sorted(falling, reverse=True)
    assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    table.get_by_role("button", name="uses").press("Enter")
    rising = table.locator("tbody tr").evaluate_all(column)
    assert rising == sorted(rising)
    table.get_by_role("button", name="item").click()
    assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"


def test_hostile_text_is_shown_and_never_run(visit):
    tab = visit()
    text = tab.locator(".rollout .tokens").first.inner_text()
    assert "</script><img src=x onerror=alert(1)>" in text
    assert tab.locator("main img, main script").count() == 0


def test_tokens_are_readable_on_a_phone(visit):
    tab = visit(PHONE)
    box = tab.locator(".rollout .tokens").first.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE[0]
    size = tab.locator(".tokens [role=option]").first.evaluate("token => parseFloat(getComputedStyle(token).fontSize)")
    assert size >= 14
