"""The built site as files: everything is there, and leads somewhere."""

import json
import re

import pytest

import docstrings
import lessons
import website
from links_of_site import Page, problems

LESSONS = [path.stem for path in lessons.find()]
MEGABYTE = 1_000_000


def test_every_link_leads_somewhere_and_every_picture_has_words(site):
    assert problems(site) == []


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_has_its_pictures_in_files_and_its_words(site, name):
    text = (site / f"notebooks/{name}.html").read_text(encoding="utf-8")
    notebook = json.loads((website.ROOT / f"notebooks/{name}.ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    stored = [output for output in outputs if "image/png" in output.get("data", {})]
    page = Page(text)
    shown = [image for image in page.images if "qlearn-picture" in (image.get("class") or "")]
    assert [image["alt"] for image in shown] == [output["metadata"]["image/png"]["alt"] for output in stored]
    assert text.count("data:image") == 0
    assert text.count("not attempted yet") == 0 and text.count("%pip") == 0
    assert text.count("<details") >= sum("".join(cell["source"]).count("<details") for cell in notebook["cells"]) - 1


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_is_offered_without_outputs(site, name):
    notebook = json.loads((site / f"notebooks/{name}.ipynb").read_text(encoding="utf-8"))
    assert [cell for cell in notebook["cells"] if cell.get("outputs") or cell.get("execution_count")] == []
    page = Page((site / f"notebooks/{name}.html").read_text(encoding="utf-8"))
    assert (f"{name}.ipynb" in page.links) == name[0].isdigit()


def test_a_door_leads_to_what_was_built(site):
    """Lessons run in the browser where `make site` has built that, and no page says so elsewhere."""
    pages = [path.read_text(encoding="utf-8") for path in [*site.glob("*.html"), *site.glob("notebooks/*.html")]]
    doors = sum("lite/lab/index.html?path=" in page for page in pages)
    built = (site / "lite/lab/index.html").is_file()
    assert (doors > 0) == built
    assert sum("Run it in the browser." in page for page in pages) == built


def test_words_of_the_glossary_are_reached_from_lessons(site):
    links = [link for path in site.glob("notebooks/0*.html") for link in Page(path.read_text("utf-8")).links]
    words = {link for link in links if link.startswith("glossary.html#")}
    assert len(words) > 80


def test_everything_public_is_on_a_page(site):
    text = "".join(path.read_text(encoding="utf-8") for path in site.glob("api/*.html"))
    ids = set(re.findall(r'id="(qlearn[\w.]+)"', text))
    names = {
        name for _, modules in docstrings.PAGES.values() for module in modules for name in docstrings.public(module)
    }
    assert names <= ids and len(names) > 150


def test_what_no_page_uses_is_not_there(site):
    files = [path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()]
    ours = [name for name in files if not name.startswith("lite/")]
    assert [name for name in ours if "fontawesome" in name or name.endswith(".map")] == []
    assert sum((site / name).stat().st_size for name in ours) < 20 * MEGABYTE
