"""The built site as its readers see it: on a screen and on a phone, light and dark, with nothing from elsewhere."""

import importlib.util
from pathlib import Path

import pytest

import lessons
import real_lab
from qlearn.style import DARK_FILTER

SCREEN, PHONE = (1280, 900), (400, 800)
LESSONS = [f"notebooks/{path.stem}.html" for path in lessons.find()]
OTHERS = [
    "index.html",
    "api/index.html",
    "api/affine.html",
    "api/nn_ptq.html",
    "docs/teaching.html",
    "CONTRIBUTING.html",
]
FOR_ALL = ["index.html", LESSONS[1], LESSONS[5], "notebooks/glossary.html", "api/nn_ptq.html", "search.html?q=scale"]
WEIGHT = 1_500_000  # bytes of a lesson's page before its pictures

# Colours that change from light to dark on the way are neither.
AT_REST = """() => Promise.allSettled(document.getAnimations()
    .filter(one => one instanceof CSSTransition).map(one => one.finished))"""
# Lazy pictures come when they are looked at, so they are asked for here.
ALL_IN = """async () => {
    for (const image of document.images) image.loading = 'eager';
    await window.MathJax?.startup?.promise;
    await Promise.all([...document.images].map(image => image.decode())); }"""
SQUEEZED = """() => [...document.images].filter(image => image.clientWidth)
    .filter(image => Math.abs(image.clientWidth / image.clientHeight / (image.naturalWidth / image.naturalHeight) - 1) > .02)
    .map(image => image.src)"""
TOO_WIDE = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
FORMULAS = """() => [document.querySelectorAll('.math').length, document.querySelectorAll('mjx-container').length,
    document.querySelectorAll('mjx-merror, [data-mjx-error]').length]"""
LOOKS = """() => { const image = document.querySelector('.bd-content img');
    return [document.documentElement.dataset.theme, getComputedStyle(image).filter,
            getComputedStyle(document.body).backgroundColor]; }"""


def show(page, address, path, size=SCREEN, scheme="light"):
    """Open a page and wait until all of it is there."""
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.emulate_media(color_scheme=scheme)
    page.asked.clear()
    page.complaints.clear()
    page.goto(f"{address}/{path}", wait_until="load")
    page.evaluate(ALL_IN)
    page.evaluate(AT_REST)


@pytest.mark.parametrize("path", [*LESSONS, *OTHERS])
def test_a_page_fits_is_light_and_asks_nobody_else(page, site, address, path):
    for size in (SCREEN, PHONE):
        show(page, address, path, size)
        assert page.evaluate(TOO_WIDE) <= 0
        assert page.evaluate(SQUEEZED) == []
        wanted, typeset, wrong = page.evaluate(FORMULAS)
        assert (typeset, wrong) == (wanted, 0)
        assert [url for url in page.asked if not url.startswith((f"{address}/", "data:"))] == []
        assert page.complaints == []
    loaded = {url.removeprefix(f"{address}/").partition("?")[0] for url in page.asked if url.startswith(address)}
    sizes = {name: (site / name).stat().st_size for name in loaded if not name.endswith((".png", ".gif", ".svg"))}
    assert 400_000 < sum(sizes.values()) <= WEIGHT, sizes


@pytest.mark.parametrize("path", [LESSONS[1], "index.html"])
def test_pictures_turn_dark_with_the_page(page, address, path):
    show(page, address, path, scheme="light")
    light = page.evaluate(LOOKS)
    show(page, address, path, scheme="dark")
    dark = page.evaluate(LOOKS)
    assert light[:2] == ["light", "none"]
    assert dark[:2] == ["dark", DARK_FILTER]
    assert light[2] != dark[2]


def test_what_is_folded_unfolds(page, address):
    show(page, address, LESSONS[5], PHONE)
    code = page.locator("details.hide").first
    assert not code.locator("pre").first.is_visible()
    code.locator("summary").click()
    assert code.locator("pre").first.is_visible()
    hint = page.locator("details:has(> summary:has-text('Hint for 05.1'))").first
    words = hint.locator("p").first
    assert not words.is_visible()
    hint.locator("summary").click()
    assert words.is_visible()


def test_a_reader_goes_from_lesson_to_lesson(page, address):
    show(page, address, LESSONS[2])
    page.locator("a.right-next").click()
    page.wait_for_url("**/03_granularity.html")
    page.locator("a.left-prev").click()
    page.wait_for_url("**/02_choosing_the_range.html")


def test_search_finds_the_lesson_the_word_and_the_function(page, address):
    show(page, address, "search.html?q=requantization")
    found = page.locator("#search-results li a")
    real_lab.until("something is found", lambda: found.count() >= 3)
    names = " ".join(found.evaluate_all("links => links.map(link => link.href)"))
    assert "04_integer_arithmetic.html" in names and "glossary.html#requantization" in names


def axe():
    """axe-core, as the package axe-playwright-python has it."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None:
        pytest.skip("axe-core is not installed: pip install -e .[site]")
    return Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize(("size", "scheme"), [(SCREEN, "dark"), (PHONE, "light")])
@pytest.mark.parametrize("path", FOR_ALL)
def test_everybody_can_read_a_page(page, address, path, size, scheme):
    show(page, address, path, size, scheme)
    if "search" in path:
        real_lab.until("something is found", lambda: page.locator("#search-results li").count() > 5)
    page.evaluate(axe())
    report = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    assert [(v["impact"], v["id"], v["nodes"][0]["html"][:200]) for v in report["violations"]] == []
