#!/usr/bin/env python3
"""Pictures of a lesson as a learner sees it, run in a real JupyterLab.

    python tools/screenshots.py notebooks/01_….ipynb --to /tmp/shots             light and dark, 1280 and 800 wide
    python tools/screenshots.py notebooks/01_….ipynb --to /tmp/shots --width 800 --theme dark --height 1200

A lesson becomes tiles from top to bottom: NAME-THEME-WIDTH-00.png, -01.png, …
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import real_lab

OVERLAP = 60  # pixels that two tiles share, so that no line is cut in both


def main(arguments: list[str]) -> int:
    """Do what the command line says; print each file as it is written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--to", type=Path, default=Path("screenshots"), help="folder for the tiles")
    parser.add_argument("--theme", nargs="+", choices=["light", "dark"], default=["light", "dark"])
    parser.add_argument("--width", nargs="+", type=int, default=[1280, 800])
    parser.add_argument("--height", type=int, default=1000, help="height of a tile")
    parser.add_argument("--scale", type=float, default=1, help="pixels of the picture for one of the page")
    options = parser.parse_args(arguments)
    for theme in options.theme:
        with tempfile.TemporaryDirectory() as folder, real_lab.running_lab(Path(folder), theme) as lab:
            for notebook in options.notebooks:
                shutil.copy(notebook, folder)
            for width in options.width:
                with real_lab.browser_page(width, options.height, options.scale) as page:
                    for notebook in options.notebooks:
                        real_lab.open_notebook(page, lab, notebook.name)
                        real_lab.run_all(page)
                        for complaint in [*page.complaints, *real_lab.error_outputs(page)]:
                            print(f"{notebook.name}: {complaint.strip().splitlines()[-1]}")
                        tiles(page, options.to, f"{notebook.stem}-{theme}-{width}")
    return 0


def tiles(page: Any, folder: Path, name: str) -> None:
    """Photograph the open notebook from top to bottom."""
    folder.mkdir(parents=True, exist_ok=True)
    area = page.evaluate_handle("""() => [...document.querySelectorAll('.jp-NotebookPanel, .jp-NotebookPanel *')]
        .find(part => part.scrollHeight > part.clientHeight + 1 && /auto|scroll/.test(getComputedStyle(part).overflowY))
        || document.querySelector('.jp-Notebook')""").as_element()
    area.evaluate("area => area.scrollTop = 0")
    for number in range(1000):
        path = folder / f"{name}-{number:02}.png"
        path.write_bytes(still(area))
        print(path, flush=True)
        before = area.evaluate("area => area.scrollTop")
        area.evaluate(f"area => area.scrollTop += area.clientHeight - {OVERLAP}")
        if area.evaluate("area => area.scrollTop") == before:
            return


def still(area: Any) -> bytes:
    """A photograph of something that has stopped moving: pictures and formulas in it are in their places."""
    shots = [area.screenshot()]

    def again() -> bool:
        shots.append(area.screenshot())
        return shots[-1] == shots[-2]

    real_lab.until("the page has stopped moving", again)
    return shots[-1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
