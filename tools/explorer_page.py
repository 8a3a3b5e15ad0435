"""An explorer as the learner sees it: its controls, its table and its picture, found in the page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

import real_lab


class ExplorerPage:
    """The first explorer on a page; `root` may name something else that has controls and a picture."""

    def __init__(self, page: Any, root: str = ".qlearn-explorer") -> None:
        self.page = page
        self.root = page.locator(root).first
        self.image = self.root.locator("img")
        self.image.wait_for()
        self.settle()

    def control(self, label: str) -> Any:
        """The row of one control, found by what the learner reads."""
        exact = self.page.locator(".widget-label", has_text=label).and_(self.page.get_by_text(label, exact=True))
        return self.root.locator(".widget-inline-hbox").filter(has=exact)

    def readout(self, label: str) -> float:
        return float(self.control(label).locator(".widget-readout").inner_text())

    def drag(self, label: str, fractions: Iterable[float]) -> None:
        """Pull the handle to these parts of the slider's length, one after the other."""
        self.settle()  # nothing in the page moves any more
        handle, track = self.control(label).locator(".noUi-handle"), self.control(label).locator(".noUi-target")
        handle.scroll_into_view_if_needed()
        knob, line = handle.bounding_box(), track.bounding_box()
        y = line["y"] + line["height"] / 2
        self.page.mouse.move(knob["x"] + knob["width"] / 2, y)
        self.page.mouse.down()
        self.control(label).locator(".noUi-handle.noUi-active").wait_for()  # it is held
        for fraction in fractions:
            self.page.mouse.move(line["x"] + line["width"] * fraction, y)
        self.page.mouse.up()
        self.settle()

    def press(self, label: str, key: str, times: int = 1, *, settle: bool = True) -> None:
        """Move a slider with the keyboard."""
        handle = self.control(label).locator(".noUi-handle")
        for _ in range(times):
            handle.press(key)  # which gives it the focus before
        if settle:
            self.settle()

    def choose(self, label: str, option: str) -> None:
        self.control(label).locator("select").select_option(label=option)
        self.settle()

    def numbers(self) -> dict[str, str]:
        """The table: label → text."""
        # In one go: between two looks at it the table may have become another one.
        return dict(
            self.root.evaluate("""root => [...root.querySelectorAll('table th')]
                .map(th => [th, th.nextElementSibling].map(cell => cell.innerText.trim()))""")
        )

    def pixels(self) -> np.ndarray:
        return real_lab.pixels(self.image)

    def looks(self) -> tuple[str, str]:
        """A fingerprint of table and picture."""
        return json.dumps(self.numbers()), hashlib.sha256(self.pixels().tobytes()).hexdigest()

    def settle(self) -> None:
        """Wait until table and picture are those of the last move: the kernel has answered, the picture has come."""
        real_lab.at_rest(self.page)

    def paint_times(self, label: str, moves: int) -> list[float]:
        """Milliseconds from each move of a control to the painted picture that follows it.

        A slider goes step by step to its end and back, five steps at once where it has many; a choice goes from one
        option to the next. The moves are made within the page, so that nothing but the page and the kernel is
        measured. Where the picture stays as it was, the time is that of the painted numbers. A move that changes
        neither counts for nothing, and the next ones are larger; but not every second one may do so.
        """
        knob = self.control(label).locator(".noUi-handle, select")
        times = [ms for ms in knob.evaluate(PAINT_TIMES, [self.root.element_handle(), moves]) if ms is not None]
        if len(times) <= moves / 2:
            raise TimeoutError(f"{label!r} was moved {moves} times, and {len(times)} of them were to be seen")
        return times


PAINT_TIMES = """async (knob, [root, moves]) => {
    let up = true, keys = ['ArrowLeft', 'ArrowRight'];
    const at = name => Number(knob.getAttribute('aria-value' + name));
    const move = () => {
        if (knob.tagName === 'SELECT') {
            knob.selectedIndex = (knob.selectedIndex + 1) % knob.options.length;
            knob.dispatchEvent(new Event('change', {bubbles: true}));
        } else {
            const before = at('now');
            up = before <= at('min') || up && before < at('max');
            knob.dispatchEvent(new KeyboardEvent('keydown', {key: keys[+up], bubbles: true, cancelable: true}));
            if (at('max') - at('min') > 200 * Math.abs(at('now') - before)) keys = ['PageDown', 'PageUp'];
        }
    };
    // The frame that follows draws what has changed; a task queued from within it runs when that is done.
    const painted = () => new Promise(done => requestAnimationFrame(() => {
        const channel = new MessageChannel();
        channel.port1.onmessage = () => done(performance.now());
        channel.port2.postMessage(0);
    }));
    const times = [];
    for (let k = 0; k < moves; k++) {
        times.push(await new Promise(resolve => {
            const from = performance.now();
            let text = null;
            const texts = new MutationObserver(async () => { text = await painted() - from; });
            for (const html of root.querySelectorAll('.widget-html-content'))
                texts.observe(html, {childList: true, characterData: true, subtree: true});
            const end = time => {
                clearTimeout(late); texts.disconnect(); root.removeEventListener('load', loaded, true); resolve(time);
            };
            const late = setTimeout(() => end(text), 1500);
            const loaded = async event => {
                await event.target.decode().catch(() => {});
                end(await painted() - from);
            };
            // Seen on its way down to the picture, so that it does not matter whether that is the same as before.
            root.addEventListener('load', loaded, {once: true, capture: true});
            move();
        }));
        if (times.at(-1) === null) keys = ['PageDown', 'PageUp'];
        // A hand moves at any time of a frame (1/60 s). This loop goes on when one has been painted, so it waits a
        // little longer each time; otherwise all times would be whole frames and the same rest.
        await new Promise(r => setTimeout(r, 40 + 1000 / 60 * (k * 0.618 % 1)));
    }
    return times; }"""
