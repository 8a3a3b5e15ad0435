"""The package's docstrings, which are written to be read in an editor, as reStructuredText: Sphinx makes pages of it.

an indented block               a formula or a table, kept letter by letter
>>>                             an example
Args: Returns: Raises: …        a heading, and a list where there are entries `name: what it is`
`name`                          code; a link where the package exports that name
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Any

import qlearn

# The pages in the order of the lessons: file, title, and the modules of `qlearn` on it.
PAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "affine": ("Quantize and dequantize", ("affine", "config")),
    "errors": ("Errors", ("errors",)),
    "ranges": ("Ranges", ("ranges",)),
    "granularity": ("Granularity", ("granularity",)),
    "integer": ("Integer arithmetic", ("integer",)),
    "observers": ("Observers", ("observers",)),
    "nn_ptq": (
        "Networks: post-training quantization",
        (
            *("nn.ptq", "nn.layers", "nn.integer_layers", "nn.folding", "nn.storage", "nn.summary", "nn.models"),
            *("nn.training", "nn.rescaling", "nn.distributed"),
        ),
    ),
    "nn_qat": ("Networks: quantization-aware training", ("nn.qat", "nn.fake_quantize")),
    "gptq": ("GPTQ on arrays", ("gptq",)),
    "nn_repair": (
        "Networks: repairs without training",
        ("nn.equalization", "nn.bias_correction", "nn.gptq", "nn.mixed_precision"),
    ),
    "codebooks": ("Codebooks", ("codebooks",)),
    "formats": ("Narrow floats and block scales", ("formats", "block_scales")),
    "packing": ("Packing", ("packing", "gguf_blocks")),
    "rotations": ("Rotations", ("rotations",)),
    "nn_language": (
        "Networks: language models",
        (
            *("nn.language_model", "nn.perplexity", "nn.generation", "nn.smoothquant", "nn.awq", "nn.rotate"),
            *("nn.codebook_layer", "nn.adapters"),
        ),
    ),
    "nn_speed": ("Networks: how fast they are", ("nn.engines", "nn.machine", "nn.speed")),
    "nn_files": ("Networks: files that others read", ("nn.export", "nn.packed_files", "nn.gguf_files")),
    "datasets": ("Data", ("datasets",)),
    "widgets": ("Explorers", ("widgets",)),
    "exercises": ("Exercises", ("exercises",)),
    "plots": ("Pictures", ("plots",)),
}
TOP = "affine", "config", "ranges", "granularity"  # what these hold is exported by `qlearn` itself

HEADING = re.compile(r"(Args|Attributes|Returns|Raises|Cost|Memory|Source): *(.*)")
ENTRY = re.compile(r"([\w*][\w*, ]*): +(.*)")
CODE = re.compile(r"(`[^`]+`)")
ADDRESS = re.compile(r"(https?://[^\s,;()]*[^\s,;().])")
SPECIAL = re.compile(r"([\\*|_])")


# --- what there is ---------------------------------------------------------------------------------------------------


def public(module: str) -> dict[str, Any]:
    """{full name: function or class} of what one module of `qlearn` exports, under the name that users write."""
    exporter = "qlearn" if module in TOP else f"qlearn.{module.partition('.')[0]}"
    namespace = importlib.import_module(exporter)
    names = getattr(namespace, "__all__", None) or [name for name in vars(namespace) if not name.startswith("_")]
    found = {f"{exporter}.{name}": getattr(namespace, name) for name in names}
    home = f"qlearn.{module}"
    return {
        name: thing
        for name, thing in found.items()
        if (inspect.isfunction(thing) or inspect.isclass(thing))
        and (thing.__module__ == home or thing.__module__.startswith(f"{home}."))
    }


@cache
def known() -> dict[str, str]:
    """{what a docstring may call it: full name}, where that is clear."""
    every = [name for _, modules in PAGES.values() for module in modules for name in public(module)]
    short: dict[str, list[str]] = {}
    for name in every:
        parts = name.split(".")
        for start in range(len(parts)):
            short.setdefault(".".join(parts[start:]), []).append(name)
    return {called: names[0] for called, names in short.items() if len(names) == 1}


# --- pages -----------------------------------------------------------------------------------------------------------


def pages() -> Iterator[tuple[str, str]]:
    """(name, text) of all pages about the package."""
    yield "index", contents()
    for name, (title, modules) in PAGES.items():
        yield name, page(title, modules)


def page(title: str, modules: tuple[str, ...]) -> str:
    """The page of some modules: what each is about, then all that it exports."""
    lines = [title, "=" * len(title), ""]
    for module in modules:
        heading = f"qlearn.{module}"
        lines += [heading, "-" * len(heading), ""]
        lines += [*rst(inspect.getdoc(importlib.import_module(f"qlearn.{module}")) or ""), ""]
        for name, thing in public(module).items():
            kind = "class" if inspect.isclass(thing) else "function"
            lines += [f".. auto{kind}:: {name}", *(["   :members:"] if kind == "class" else []), ""]
    return "\n".join(lines)


def contents() -> str:
    """The first page: which page holds what, a line each."""
    lines = ["The package", "===========", ""]
    lines += [*rst(inspect.getdoc(qlearn) or ""), "", "The pages have the order of the lessons.", ""]
    lines += [".. list-table::", "   :widths: 35 65", "   :header-rows: 1", "", "   * - page", "     - holds"]
    for file, (_, modules) in PAGES.items():
        names = [name for module in modules for name in public(module)]
        links = ", ".join(f":py:obj:`{name.rpartition('.')[2]} <{name}>`" for name in names)
        lines += [f"   * - :doc:`{file}`", f"     - {links}"]
    lines += ["", ".. toctree::", "   :hidden:", "", *(f"   {file}" for file in PAGES), ""]
    return "\n".join(lines)


# --- one docstring ---------------------------------------------------------------------------------------------------


def rst(docstring: str) -> list[str]:
    """The lines of a docstring as reStructuredText.

    >>> print("\\n".join(rst("Of `x`.\\n\\n    y = x * 2\\n\\nArgs:\\n    x: a_number.\\n")).strip())
    Of ``x``.
    <BLANKLINE>
    ::
    <BLANKLINE>
        y = x * 2
    <BLANKLINE>
    .. rubric:: Args
    <BLANKLINE>
    ``x``
        a\\_number.
    """
    out: list[str] = []
    for heading, lines in _parts(docstring.splitlines()):
        if heading:
            out += ["", f".. rubric:: {heading}", ""]
            out += _entries(lines) if heading in ("Args", "Attributes", "Raises") else _text(_dedent(lines))
        else:
            out += _text(lines)
    return out


def _parts(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(heading or "", its lines). What follows a heading is its line's rest, and what is indented below it."""
    heading, part = "", list[str]()
    for line in lines:
        found = HEADING.fullmatch(line)
        if found or (heading and line and not line.startswith(" ")):
            yield heading, part
            heading, part = (found[1], [f"    {found[2]}"] if found[2] else []) if found else ("", [line])
        else:
            part.append(line)
    yield heading, part


def _dedent(lines: list[str]) -> list[str]:
    return textwrap.dedent("\n".join(lines)).strip("\n").splitlines()


def _entries(lines: list[str]) -> list[str]:
    """`name: what it is`, with what is indented further, as a list of definitions; anything else as text."""
    entries: list[tuple[str, list[str]]] = []
    for line in _dedent(lines):
        found = ENTRY.fullmatch(line)
        if found and not line.startswith(" "):
            entries.append((found[1], [found[2]]))
        elif entries and (line.startswith(" ") or not line):
            entries[-1][1].append(line.strip())
        elif entries:
            entries.append(("", [line]))
        else:
            return _text(_dedent(lines))
    out = []
    for name, text in entries:
        inside = _text(text)
        if name:
            out += [", ".join(f"``{each.strip()}``" for each in name.split(",")), *(f"    {line}" for line in inside)]
        else:
            out += ["", *inside]
    return [*out, ""]


def _text(lines: list[str]) -> list[str]:
    """Paragraphs, indented blocks and examples, an empty line after each."""
    out: list[str] = []
    for block in re.split(r"\n[ ]*\n", "\n".join(lines).strip("\n")):
        if not block.strip():
            continue
        rows = block.splitlines()
        first_indented = next((n for n, row in enumerate(rows) if row.startswith("    ")), None)
        if rows[0].startswith(">>>"):
            out += [*rows, ""]
        elif first_indented == 0:
            out += ["::", "", *rows, ""]
        elif all(row.startswith(("- ", "  ")) for row in rows):
            out += [inline(row) for row in rows] + [""]
        else:
            out += [inline(row.strip()) for row in rows] + [""]
    return out


def inline(text: str) -> str:
    """A line of text: `code`, links, and everything else as it stands.

    >>> inline("a*b of `x`, |y|")
    'a\\\\*b of ``x``, \\\\|y\\\\|'
    >>> inline("`quantize` first")
    ':py:obj:`quantize <qlearn.quantize>` first'
    """
    out = []
    for part in CODE.split(text):
        if CODE.fullmatch(part):
            name = part.strip("`")
            full = known().get(name.removesuffix("()"))
            out.append(f":py:obj:`{name} <{full}>`" if full else f"``{name}``")
        else:
            pieces = ADDRESS.split(part)
            out += [piece if n % 2 else SPECIAL.sub(r"\\\1", piece) for n, piece in enumerate(pieces)]
    return "".join(out)


def anchor(heading: str) -> str:
    """What JupyterLab calls the place of a heading, so that its links lead there on the site as well.

    >>> anchor("bits per value")
    'bits-per-value'
    """
    return heading.replace(" ", "-")
