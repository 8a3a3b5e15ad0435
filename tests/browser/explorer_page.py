"""An explorer as the learner sees it: its controls, its table and its picture, found in the page."""

import hashlib
import json
import time

import real_lab


class ExplorerPage:
    """The first explorer on a page."""

    def __init__(self, page):
        self.page = page
        self.root = page.locator(".qlearn-explorer").first
        self.image = self.root.locator("img")
        self.image.wait_for()

    def control(self, label):
        """The row of one control, found by what the learner reads."""
        exact = self.page.locator(".widget-label", has_text=label).and_(self.page.get_by_text(label, exact=True))
        return self.root.locator(".widget-inline-hbox").filter(has=exact)

    def readout(self, label):
        return float(self.control(label).locator(".widget-readout").inner_text())

    def drag(self, label, fractions):
        """Pull the handle to these parts of the slider's length, one after the other."""
        handle, track = self.control(label).locator(".noUi-handle"), self.control(label).locator(".noUi-target")
        handle.scroll_into_view_if_needed()
        knob, line = handle.bounding_box(), track.bounding_box()
        y = line["y"] + line["height"] / 2
        self.page.mouse.move(knob["x"] + knob["width"] / 2, y)
        self.page.mouse.down()
        for fraction in fractions:
            self.page.mouse.move(line["x"] + line["width"] * fraction, y)
            time.sleep(0.03)
        self.page.mouse.up()
        self.settle()

    def press(self, label, key, times=1):
        """Move a slider with the keyboard."""
        self.control(label).locator(".noUi-handle").focus()
        for _ in range(times):
            self.page.keyboard.press(key)
        self.settle()

    def choose(self, label, option):
        self.control(label).locator("select").select_option(label=option)
        self.settle()

    def numbers(self):
        """The table: label → text."""
        table = self.root.locator("table")
        cells = [[text.strip() for text in table.locator(kind).all_inner_texts()] for kind in ("th", "td")]
        return dict(zip(*cells, strict=True))

    def pixels(self):
        return real_lab.pixels(self.image)

    def looks(self):
        """A fingerprint of table and picture."""
        return json.dumps(self.numbers()), hashlib.sha256(self.pixels().tobytes()).hexdigest()

    def settle(self, quiet=0.3, limit=15):
        """Wait until table and picture have stopped changing."""
        end, before, since = time.monotonic() + limit, None, time.monotonic()
        while time.monotonic() < end:
            now = self.looks()
            if now != before:
                before, since = now, time.monotonic()
            elif time.monotonic() - since > quiet:
                return
            time.sleep(0.05)
        raise TimeoutError("the explorer did not come to rest")

    def paint_times(self, label, keys):
        """Milliseconds from each key to the painted picture that follows it.

        The keys are sent from within the page, so that nothing but the page and the kernel is measured.
        """
        handle = self.control(label).locator(".noUi-handle")
        return handle.evaluate(PAINT_TIMES, [self.image.element_handle(), keys])


PAINT_TIMES = """async (handle, [img, keys]) => {
    const times = [];
    for (const key of keys) {
        times.push(await new Promise((resolve, reject) => {
            const from = performance.now();
            const late = setTimeout(() => reject(new Error('no picture after ' + key)), 10000);
            img.addEventListener('load', () => requestAnimationFrame(() => {
                // The frame that follows draws the picture; a task queued from within it runs when that is done.
                const channel = new MessageChannel();
                channel.port1.onmessage = () => { clearTimeout(late); resolve(performance.now() - from); };
                channel.port2.postMessage(0);
            }), {once: true});
            handle.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
        }));
        await new Promise(r => setTimeout(r, 40));
    }
    return times; }"""
