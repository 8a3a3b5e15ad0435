"""Lessons as web pages: every picture is in the file, nothing is asked of the network, nothing is wider than a phone."""

import nbformat
import pytest
from nbconvert import HTMLExporter

import lessons
import real_lab

LESSONS = lessons.find()
# nbconvert's own frame asks for these two, for formulas; a lesson's content asks for nothing.
OF_THE_FRAME = ("/ajax/libs/require.js/", "/ajax/libs/mathjax/")


@pytest.fixture(scope="module")
def reader(page):
    """A page that reaches no network; `asked` are the addresses that it was refused."""
    page = page.context.browser.new_page()
    page.set_default_timeout(1000 * real_lab.PATIENCE)
    page.asked, page.complaints = [], []

    def answer(route):
        address = route.request.url
        if address.startswith(("file:", "data:", "blob:")):
            route.continue_()
        elif any(part in address for part in OF_THE_FRAME):
            route.fulfill(body="", content_type="text/javascript")
        else:
            page.asked.append(address)
            route.abort()

    page.route("**/*", answer)
    page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    yield page
    page.close()


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_exported_lesson_is_whole(reader, path, tmp_path):
    html, _ = HTMLExporter().from_notebook_node(nbformat.read(path, as_version=4))
    file = tmp_path / f"{path.stem}.html"
    file.write_text(html, encoding="utf-8")
    reader.asked.clear()
    reader.complaints.clear()
    stored = sum(
        "image/png" in output.get("data", {})
        for cell in nbformat.read(path, as_version=4).cells
        for output in cell.get("outputs", [])
    )
    for width in (1280, 400):
        reader.set_viewport_size({"width": width, "height": 900})
        reader.goto(file.as_uri())
        pictures = reader.evaluate(
            "[...document.images].map(i => [i.complete && i.naturalWidth > 0, i.alt, i.getBoundingClientRect().right])"
        )
        assert len(pictures) == stored
        for shown, alt, right in pictures:
            assert shown and alt and right <= width
        assert reader.evaluate("document.scrollingElement.scrollWidth") <= width
    assert reader.asked == []
    assert [text for text in reader.complaints if "MathJax" not in text] == []
