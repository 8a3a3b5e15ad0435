"""What is wrong with the links and pictures of a folder of pages, found without a browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a page loads by itself, and so must be here; a link that a reader clicks may lead anywhere.
LOADED = {
    "script": "src",
    "img": "src",
    "source": "src",
    "iframe": "src",
    "video": "src",
    "audio": "src",
    "link": "href",
}
IN_STYLE = re.compile(r"url\(\s*[\"']?([^\"')]+)|@import\s+[\"']([^\"']+)")


class Page(HTMLParser):
    """The targets of one page, what it links to, what it loads, and its images."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.ids |= {known[name] for name in ("id", "name") if known.get(name)}
        if tag == "a" and known.get("href"):
            self.links.append(known["href"])
        if tag == "link" and known.get("rel") not in ("stylesheet", "icon", "preload"):
            return  # the page before, the page after
        if known.get(LOADED.get(tag, "")):
            self.loads.append(known[LOADED[tag]])
        if tag == "img":
            self.images.append(known)


def problems(folder: Path) -> list[str]:
    """A line for each dead link, each missing alt text, and each thing that is loaded from another host."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(folder).as_posix()
        found += [f"{name}: links to {link}, which is not there" for link in page.links if not leads(path, link, pages)]
        found += [f"{name}: loads {thing}, which is not here" for thing in page.loads if not here(path, thing)]
        found += [
            f"{name}: no alt text for {image['src']}" for image in page.images if not (image.get("alt") or "").strip()
        ]
    for path in sorted(folder.rglob("*.css")):
        for parts in IN_STYLE.findall(path.read_text(encoding="utf-8")):
            if re.match(r"(https?:)?//", thing := "".join(parts)):
                found.append(f"{path.relative_to(folder).as_posix()}: loads {thing}, which is not here")
    return found


def leads(path: Path, link: str, pages: dict[Path, Page]) -> bool:
    """Whether a link leads somewhere: to another host, or to a file here and to an id in it."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
    target = target / "index.html" if target.is_dir() else target
    if not target.is_file():
        return False
    ids = next((page.ids for other, page in pages.items() if other.resolve() == target), None)
    return not parts.fragment or ids is None or unquote(parts.fragment) in ids


def here(path: Path, thing: str) -> bool:
    """Whether what a page loads is a file of its own folder."""
    parts = urlsplit(thing)
    if parts.scheme == "data":
        return True
    return not parts.scheme and not parts.netloc and (path.parent / unquote(parts.path)).is_file()
