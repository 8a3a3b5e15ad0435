"""Questions with choices: predictions and quizzes. A click commits, and answers.

Where no kernel runs, each choice unfolds to its reply.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets

STYLE = """<style>
.qlearn-question {max-width: 800px; margin: 4px 0 10px}
.qlearn-question .widget-html-content, .qlearn-question .widget-html > .widget-html-content {line-height: 1.5}
.qlearn-question button {width: auto; max-width: 100%; height: auto; min-height: 28px; margin: 3px 8px 3px 0;
  padding: 4px 12px; text-align: left; white-space: normal; line-height: 1.4; border-radius: 4px}
.qlearn-question button:disabled {opacity: 1; cursor: default}
.qlearn-question :focus-visible {outline: 2px solid #3A96D2; outline-offset: 1px}
</style>"""


@dataclass(frozen=True)
class Choice:
    """One answer to choose, plain text, and what is said to whoever has chosen it. `code` in replies is set as such."""

    text: str
    reply: str
    right: bool = False


@dataclass(frozen=True)
class Question:
    """A question with two to five choices, of which at least one is right.

    Attributes:
        id: lesson and a letter, "03.a", for a prediction; lesson, q and a number, "03.q1", for the quiz.
        text: the question. `code` is set as such.
        choices: in the order in which they are shown.
    """

    id: str
    text: str
    choices: tuple[Choice, ...]


class Asked:
    """Questions as they stand in a lesson: live buttons, and for all other readers text that unfolds.

    Args:
        questions: one, or the five of a quiz, which are numbered.
        lead: what stands before a single question.
    """

    def __init__(self, questions: Sequence[Question], lead: str = "") -> None:
        self.questions = questions
        self.chosen: dict[str, Choice] = {}
        numbers = [f"{number}." for number in range(1, len(questions) + 1)] if len(questions) > 1 else [lead]
        self._heads = [
            f"<b>{number}</b> {_set(question.text)}" for number, question in zip(numbers, questions, strict=True)
        ]
        self._score = ipywidgets.HTML()
        self._page: ipywidgets.VBox | None = None

    def __repr__(self) -> str:
        return "\n".join(
            "\n".join([question.text, *(f"  - {choice.text}" for choice in question.choices)])
            for question in self.questions
        )

    def _repr_html_(self) -> str:
        """Each choice, to be unfolded."""
        parts = []
        for head, question in zip(self._heads, self.questions, strict=True):
            parts.append(f"<p>{head}</p>")
            for choice in question.choices:
                parts.append(
                    f"<details><summary>{html.escape(choice.text)}</summary>"
                    f"<p style='margin: 2px 0 6px 1.2em'>{_judged(choice)}</p></details>"
                )
        return f"<div style='max-width: 800px; line-height: 1.5'>{''.join(parts)}</div>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.page.model_id}
        return {
            "text/plain": repr(self),
            "text/html": self._repr_html_(),
            "application/vnd.jupyter.widget-view+json": view,
        }

    @property
    def page(self) -> ipywidgets.VBox:
        """The live widgets, made when they are first shown."""
        if self._page is None:
            boxes = [self._box(head, question) for head, question in zip(self._heads, self.questions, strict=True)]
            self._page = ipywidgets.VBox([ipywidgets.HTML(STYLE), *boxes, self._score])
            self._page.add_class("qlearn-question")
        return self._page

    def _box(self, head: str, question: Question) -> ipywidgets.VBox:
        reply = ipywidgets.HTML()
        buttons = [ipywidgets.Button(description=choice.text, tooltip=choice.text) for choice in question.choices]

        def choose(button: ipywidgets.Button) -> None:
            if question.id in self.chosen:  # two quick clicks: the second one came before the buttons were disabled
                return
            choice = question.choices[buttons.index(button)]
            self.chosen[question.id] = choice
            for other, its in zip(buttons, question.choices, strict=True):
                other.disabled = True
                mark = "✓ " if its.right else "✗ " if other is button else ""
                other.description = mark + its.text
            reply.value = f'<div role="status">{_judged(choice)}</div>'
            self._count()

        for button in buttons:
            button.on_click(choose)
        choices = ipywidgets.Box(buttons, layout=ipywidgets.Layout(flex_flow="row wrap"))
        return ipywidgets.VBox([ipywidgets.HTML(head), choices, reply])

    def _count(self) -> None:
        if len(self.questions) > 1:
            right = sum(choice.right for choice in self.chosen.values())
            text = f"{right} of {len(self.chosen)} right."
            self._score.value = f'<div role="status">{text}</div>'


def _judged(choice: Choice) -> str:
    return f"{'✓ Right.' if choice.right else '✗ No.'} {_set(choice.reply)}"


def _set(text: str) -> str:
    """A text for the page: `code`, *stress*, and nothing that the page would read as its own language.

    >>> _set("`a < b`, *always*")
    '<code>a &lt; b</code>, <em>always</em>'
    """
    parts = re.split(r"`([^`]+)`", text)
    marked = [re.sub(r"\*([^*]+)\*", r"<em>\1</em>", html.escape(part, quote=False)) for part in parts[::2]]
    codes = [f"<code>{html.escape(part, quote=False)}</code>" for part in parts[1::2]]
    return "".join(piece for pair in zip(marked, [*codes, ""], strict=True) for piece in pair)
