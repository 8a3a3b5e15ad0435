"""Make the pictures of README.md from the real thing: `make front`.

docs/explore_affine.gif     the explorer of lesson 01, moved
docs/lessons/NN.png         each lesson's explorer, as its notebook has stored it
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

import nbformat
from PIL import Image

import lessons
from dev import ROOT
from qlearn import widgets

DOCS = ROOT / "docs"
MOVES = (
    *({"bits": bits} for bits in (8, 6, 5, 4, 3, 2)),
    *({"bits": 4, "outliers": 10, "size": size} for size in (5, 20, 50, 100)),
    *({"bits": bits} for bits in (6, 8)),
)
SECONDS = 0.9  # for each move
WIDTH = 480  # of a lesson's picture


def main() -> int:
    """Write all pictures, and say how large they are."""
    files = [animation(), *map(picture, (path for path in lessons.find() if path.name[0].isdigit()))]
    for path in filter(None, files):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")
    return 0


def animation() -> Path:
    """The explorer after each of the moves, as it looks where no kernel runs."""
    explorer = widgets.explore_affine(bits=8)
    frames = []
    for move in MOVES:
        explorer.set(**move)
        file = io.BytesIO(explorer._still()[0])
        frames.append(
            Image.open(file).convert("RGB").resize((800, Image.open(file).height // 2), Image.Resampling.LANCZOS)
        )
    height = max(frame.height for frame in frames)
    same = [Image.new("RGB", (800, height), "white") for _ in frames]
    for canvas, frame in zip(same, frames, strict=True):
        canvas.paste(frame, (0, 0))
    palette = same[3].quantize(128, dither=Image.Dither.NONE)
    first, *others = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in same]
    path = DOCS / "explore_affine.gif"
    first.save(path, save_all=True, append_images=others, duration=int(1000 * SECONDS), loop=0, optimize=True)
    return path


def picture(path: Path) -> Path | None:
    """The picture of the lesson's last explorer, made small; nothing for a lesson without one."""
    stored = [
        output["data"]["image/png"]
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code" and "widgets.explore_" in cell.source
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    if not stored:
        return None
    image = Image.open(io.BytesIO(base64.b64decode(stored[-1]))).convert("RGB")
    small = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    target = DOCS / "lessons" / f"{path.name[:2]}.png"
    target.parent.mkdir(exist_ok=True)
    small.quantize(128, dither=Image.Dither.NONE).save(target, optimize=True)
    return target


if __name__ == "__main__":
    sys.exit(main())
