"""Everybody can use an explorer: with the keyboard alone, and with letters that stand out from the page."""

import pytest

import real_lab
from explorer_page import ExplorerPage
from qlearn import widgets

SHOWN = [name for name in widgets.__all__ if name.startswith("explore_")]

FOCUSED = """() => {
    const at = document.activeElement, explorer = document.querySelector('.qlearn-explorer');
    if (!explorer.contains(at)) return null;
    const row = at.closest('.widget-inline-hbox');
    return row ? row.querySelector('.widget-label').innerText : at.innerText; }"""

# WCAG 2.1, relative luminance and contrast ratio: https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio
CONTRASTS = """() => {
    const parts = text => (text.match(/[\\d.]+/g) || []).map(Number);
    const over = (top, below) => { const a = top[3] ?? 1; return below.map((c, i) => a * top[i] + (1 - a) * c); };
    const light = rgb => { const [r, g, b] = rgb.map(c => (c /= 255) <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b; };
    const chain = e => { const all = []; for (; e; e = e.parentElement) all.unshift(e); return all; };
    const found = [];
    for (const e of document.querySelectorAll('.qlearn-explorer *')) {
        const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
        if (!own || !e.getClientRects().length || e.tagName === 'STYLE' || e.closest(':disabled')) continue;
        let page = [255, 255, 255], opacity = 1;
        for (const box of chain(e)) {
            page = over(parts(getComputedStyle(box).backgroundColor), page);
            opacity *= Number(getComputedStyle(box).opacity);
        }
        const ink = parts(getComputedStyle(e).color);
        const seen = over([...ink.slice(0, 3), (ink[3] ?? 1) * opacity], page);
        const [a, b] = [light(seen), light(page)].sort((x, y) => y - x);
        found.push([(a + .05) / (b + .05), e.innerText.slice(0, 40)]);
    }
    return found; }"""


@pytest.fixture(scope="module", params=SHOWN)
def shown(request, lab, page):
    show(request.param, lab, page)
    return request.param


def show(name, lab, page):
    """The explorer in a notebook of its own, and everything that belongs to it in the page."""
    real_lab.write_notebook(lab.folder / f"{name}.ipynb", f"from qlearn import widgets\nwidgets.{name}()")
    real_lab.open_notebook(page, lab, f"{name}.ipynb")
    real_lab.run_all(page)
    ExplorerPage(page)


def test_tab_leads_through_every_control_and_keys_move_it(shown, page):
    explorer = page.locator(".qlearn-explorer")
    knob = ".noUi-handle, select, input[type=checkbox], input[type=text]"
    rows = explorer.locator(f".widget-inline-hbox:has({knob})")  # a progress bar has a label, too, and no knob
    names = [name for name in rows.locator(".widget-label").all_inner_texts() if name]
    knobs = explorer.locator(knob)
    assert knobs.count() == len(names)
    greyed = explorer.locator(".widget-inline-hbox:has(select:disabled) .widget-label").all_inner_texts()
    names = [name for name in names if name not in greyed]  # the browser leaves out what cannot be chosen now
    knobs.first.focus()
    reached = []
    for _ in range(4 * len(names)):
        at = page.evaluate(FOCUSED)
        if at is None:
            break
        if at not in reached:
            reached.append(at)
        page.keyboard.press("Tab")
    assert [name for name in reached if name in names] == names
    assert {"Reset", "Reset settings"} & set(reached)

    slider = explorer.locator(".noUi-handle").first
    value = slider.get_attribute("aria-valuenow")
    slider.focus()
    page.keyboard.press("ArrowLeft" if value == slider.get_attribute("aria-valuemax") else "ArrowRight")
    real_lab.until("the slider has moved", lambda: slider.get_attribute("aria-valuenow") != value)


def test_text_stands_out_from_a_light_page(shown, page):
    legible(page)


@pytest.fixture(scope="module")
def dark(page, tmp_path_factory):
    with real_lab.running_lab(tmp_path_factory.mktemp("dark"), theme="dark") as lab:
        yield lab
        page.goto("about:blank")  # or it would go on asking for a server that is no longer there
    page.complaints.clear()


@pytest.mark.parametrize("name", SHOWN)
def test_text_stands_out_from_a_dark_page(dark, page, name):
    show(name, dark, page)
    legible(page)


def legible(page):
    """WCAG level AA: 4.5 to 1 for text of this size."""
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 10
    assert [(round(ratio, 2), text) for ratio, text in contrasts if ratio < 4.5] == []
