"""How an explorer stands in its page: light or dark with it, and as wide as there is room."""

from __future__ import annotations

import os

from qlearn.style import DARK_FILTER, GREY, MUTED

LABELS, INDENT = "108px", "116px"  # the width of what stands before a control, and where the control begins

# Written for core ipywidgets, whose HTML may hold a <style>. Text has the page's own colour.
PAGE_STYLE = """
.qlearn-explorer, .qlearn-explorer .qlearn-controls {display: flex; flex-flow: row wrap; align-items: flex-start}
.qlearn-explorer .qlearn-controls {align-items: center}
.qlearn-explorer {gap: 4px 12px; max-width: 100%; overflow: visible}
.qlearn-explorer .qlearn-controls {flex: 1 1 300px; max-width: 800px; overflow: visible}
.qlearn-explorer .qlearn-controls > .widget-inline-hbox {flex: 1 1 280px; min-width: 0;
  max-width: max(50% - 4px, 296px)}
.qlearn-explorer .qlearn-controls > .widget-html {flex-basis: 100%}
.qlearn-explorer .qlearn-shown {flex: 1000 1 632px; max-width: 800px; min-width: 0; display: flex; flex-flow: column;
  overflow: visible}
.qlearn-explorer .qlearn-shown > * {max-width: 100%}
.qlearn-explorer img {max-width: 100%; height: auto; object-fit: contain; border-radius: 4px}
.qlearn-explorer [disabled], .qlearn-explorer .noUi-target[disabled] {opacity: .4; cursor: not-allowed}
.qlearn-explorer :focus-visible {outline: 2px solid #3A96D2; outline-offset: 1px}
.qlearn-explorer .widget-html-content {min-width: 0; max-width: 100%}
.qlearn-numbers {border-collapse: collapse; font-size: 13px; line-height: 1.3; color: inherit;
  font-variant-numeric: tabular-nums}
.qlearn-numbers th {text-align: left; font-weight: normal; opacity: .8; padding: 2px 6px 2px 0}
.qlearn-numbers td {text-align: left; font-weight: 600; padding: 2px 12px 2px 0; min-width: 56px}
.qlearn-numbers td:last-child {padding-right: 0}
.qlearn-numbers th, .qlearn-numbers td {white-space: nowrap}
.qlearn-steps {max-width: 800px; font-size: 13px; line-height: 1.5; margin: 4px 0 2px; padding: 0; color: inherit}
.qlearn-steps li {display: inline-block; list-style: none}
.qlearn-steps li + li::before {content: "→"; opacity: .6; padding: 0 6px}
.qlearn-error {font-size: 13px; line-height: 1.4; color: inherit; border-left: 4px solid #D55E00; padding: 2px 8px}
"""

# Black arrows on a dark page, and white handles with a pale rim on a white one: that is how ipywidgets come.
ARROW = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 18 18'%3E%3Cpath fill='none' "
    f"stroke='{MUTED.replace('#', '%23')}' stroke-width='1.8' d='M5 7l4 4 4-4'/%3E%3C/svg%3E"
)
CONTROLS = f"""
.qlearn-explorer {{--jp-widgets-dropdown-arrow: url("{ARROW}")}}
.qlearn-explorer .qlearn-buttons {{display: flex; flex-flow: row wrap; margin-left: {INDENT}; overflow: visible}}
.qlearn-explorer .noUi-target .noUi-handle {{border-color: {GREY}}}
"""

DARK, LIGHT = f"{{filter: {DARK_FILTER}}}", "{filter: none}"
SYSTEM = f"@media (prefers-color-scheme: dark) {{.qlearn-explorer img {DARK}}}\n"
# JupyterLab, VS Code and Colab each say in a way of their own which theme the learner has chosen there.
PAGES = f"""
[data-jp-theme-light="true"] .qlearn-explorer img, .vscode-light .qlearn-explorer img {LIGHT}
[data-jp-theme-light="false"] .qlearn-explorer img, .vscode-dark .qlearn-explorer img,
html[theme="dark"] .qlearn-explorer img {DARK}
"""


def page_style() -> str:
    """The <style> of an explorer. Colab's light theme says nothing about itself, so there the system is not asked."""
    system = "" if "COLAB_RELEASE_TAG" in os.environ else SYSTEM
    return f"<style>{PAGE_STYLE}{CONTROLS}{system}{PAGES}</style>"
