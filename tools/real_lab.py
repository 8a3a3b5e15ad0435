"""A real JupyterLab with a real browser, for tests and for pictures of the lessons.

    with running_lab(folder) as lab, browser_page() as page:
        open_notebook(page, lab, "lesson.ipynb")
        run_all(page)

The server listens on this computer only, with a token, and keeps its settings in a throw-away folder.

Nothing here waits for a time, because a busy machine takes any time it likes. Everything waits for a state: the kernel
is connected, the cell has run, no message from the page waits for its answer (`at_rest`). JupyterLab shows these
states to the page as `window.jupyterapp`, and is asked through it to run cells.
"""

from __future__ import annotations

import base64
import io
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
from PIL import Image

from dev import ROOT, find_browser, own_environment

BROWSER_OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]

PATIENCE = 600  # seconds until something is given up: it hangs then, however busy the machine is

# Nothing over the page: no news, and no question about a file that a test has written anew. And every cell in the page,
# also those that have been scrolled away.
SETTINGS = {
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}


@dataclass(frozen=True)
class Lab:
    """A running server: its address, its token, the folder that it shows, and its theme, light or dark."""

    url: str
    token: str
    folder: Path
    theme: str = "light"


def browser_path() -> str:
    """The browser to use: $CHROMIUM, an installed Chromium or Chrome, or Playwright's own; nothing if there is none."""
    if found := find_browser():
        return found
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else ""


@contextmanager
def running_lab(folder: Path, theme: str = "light") -> Iterator[Lab]:
    """JupyterLab of this Python on a free port, showing `folder`."""
    with tempfile.TemporaryDirectory(prefix="lab-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        (home / "settings").mkdir()
        themes = {"theme": "JupyterLab Dark" if theme == "dark" else "JupyterLab Light"}
        overrides = SETTINGS | {"@jupyterlab/apputils-extension:themes": themes}
        (home / "settings/overrides.json").write_text(json.dumps(overrides), encoding="utf-8")
        # Nor does it ask whether to build itself anew, for which it would start a process of its own.
        page_config = json.dumps({"buildAvailable": False, "buildCheck": False})
        (home / "settings/page_config.json").write_text(page_config, encoding="utf-8")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        lab = Lab(f"http://127.0.0.1:{port}", secrets.token_hex(16), folder, theme)
        log = home / "lab.log"
        command = [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1"),
            *(f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={lab.token}"),
            *(f"--ServerApp.root_dir={folder}", f"--LabApp.app_settings_dir={home / 'settings'}"),
            "--LabApp.expose_app_in_browser=True",
            *(["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),
        ]
        folders = {
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "IPYTHONDIR": "ipython",
        }
        env = own_environment() | {variable: str(home / name) for variable, name in folders.items()}
        env["PYTHONPATH"] = str(ROOT)
        with log.open("w") as file:
            server = subprocess.Popen(
                command, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=os.name == "posix"
            )
        try:
            _wait_for(lab, server, log)
            yield lab
        finally:
            _stop(server)


def _wait_for(lab: Lab, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(f"{lab.url}/api/status?token={lab.token}", timeout=PATIENCE).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


def _stop(server: subprocess.Popen) -> None:
    """End the server and its kernels; they are a process group of their own."""
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        if server.poll() is not None:
            return
        if os.name == "posix":
            os.killpg(server.pid, number)
        else:
            server.terminate()
        try:
            server.wait(0.3 if number == signal.SIGINT else 10)
        except subprocess.TimeoutExpired:
            continue


@contextmanager
def browser_page(
    width: int = 1280, height: int = 900, device_scale: float = 1, options: Sequence[str] = ()
) -> Iterator[Any]:
    """A page of a headless browser; `page.complaints` gathers the errors of its console."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path() or None, args=[*BROWSER_OPTIONS, *options])
        page: Any = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=device_scale)
        page.set_default_timeout(1000 * PATIENCE)
        page.complaints = []
        page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.add_locator_handler(page.locator(".jp-Dialog"), lambda: close_dialogs(page))
        yield page
        browser.close()


def until(what: str, condition: Callable[[], Any]) -> Any:
    """Look again and again, until it is so; return what was found. `what` is what the caller waits for, in words."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {PATIENCE} s for this: {what}")
        time.sleep(0.02)
    return found


def wait_for(page: Any, what: str, condition: str, arg: Any = None) -> None:
    """Wait until a JavaScript function, given `arg`, answers with true; dialogs in the way are closed."""

    def holds() -> bool:
        close_dialogs(page)
        return page.evaluate(condition, arg)

    try:
        until(what, holds)
    except TimeoutError as error:
        raise TimeoutError(f"{error}; it is {page.evaluate(STATE)}") from None


def close_dialogs(page: Any) -> None:
    """Close the dialog that says that the server is slow to answer: JupyterLab goes on by itself. No other may come.

    Raises:
        RuntimeError: JupyterLab asks something else; this says what.
    """
    for text in page.locator(".jp-Dialog").all_inner_texts():
        if "Server Connection Error" not in text:
            raise RuntimeError(f"JupyterLab has a dialog over the page: {text!r}")
        page.evaluate("() => document.querySelector('.jp-Dialog .jp-Dialog-button')?.click()")


# What the page knows of the notebook in it.
STATE = """() => {
    const panel = window.jupyterapp?.shell?.currentWidget, kernel = panel?.sessionContext?.session?.kernel;
    return JSON.stringify({
        path: panel?.context?.path, ready: panel?.sessionContext?.isReady, kernel: kernel?.status,
        connection: kernel?.connectionStatus, unanswered: kernel?.unanswered?.size,
        dialogs: [...document.querySelectorAll('.jp-Dialog')].map(dialog => dialog.innerText)}); }"""

# Whether it is this notebook, its kernel idle and connected, the theme put on. From then on `kernel.unanswered` holds
# what widgets have sent and the kernel has not finished with. JupyterLab handles what comes from the kernel in order,
# so when the word that it has finished has been handled, all that it had to say before is in the page.
READY = """([name, theme]) => {
    const panel = window.jupyterapp?.shell?.currentWidget, kernel = panel?.sessionContext?.session?.kernel;
    if (panel?.context?.path !== name || !panel.context.isReady || !panel.sessionContext.isReady) return false;
    if (kernel?.connectionStatus !== 'connected' || kernel.status !== 'idle') return false;
    if (document.body.dataset.jpThemeLight !== String(theme === 'light')) return false;
    if (!kernel.unanswered) {
        const open = kernel.unanswered = new Set();
        kernel.anyMessage.connect((_, {msg, direction}) => {
            if (direction === 'send' && msg.header.msg_type === 'comm_msg') open.add(msg.header.msg_id);
        });
        kernel.iopubMessage.connect((_, msg) => {
            if (msg.header.msg_type === 'status' && msg.content.execution_state === 'idle')
                open.delete(msg.parent_header.msg_id);
        });
    }
    return true; }"""

# A message that waits for an earlier one to be answered is sent while that answer is handled, so there is no moment
# between them without one.
AT_REST = """() => window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.unanswered.size === 0
    && [...document.querySelectorAll('.jp-OutputArea img')].every(img => img.complete && img.naturalWidth > 0)"""

# JupyterLab's own command. `window.asked` tells how far it is.
COMMAND = """([command, index, source]) => {
    const {commands, shell} = window.jupyterapp, notebook = shell.currentWidget.content;
    if (index !== null) {
        const cell = notebook.widgets.filter(cell => cell.model.type === 'code').at(index);
        if (source !== null) cell.model.sharedModel.setSource(source);
        notebook.activeCellIndex = notebook.widgets.indexOf(cell);
    }
    const asked = window.asked = {};
    commands.execute(command).then(answer => { asked.done = true; asked.answer = answer; },
                                   error => { asked.done = true; asked.error = String(error); }); }"""

PRINTED = """index => window.jupyterapp.shell.currentWidget.content.widgets
    .filter(cell => cell.model.type === 'code').at(index).model.outputs.toJSON()
    .map(({text = '', data = {}}) => [text, data['text/plain'] ?? ''].flat().join('')).join('')"""


def open_notebook(page: Any, lab: Lab, name: str) -> None:
    """Show one notebook of the lab's folder and wait for its kernel."""
    page.goto(f"{lab.url}/doc/tree/{name}?token={lab.token}&reset")
    wait_for(page, f"{name} is in the page, its kernel idle and connected", READY, [name, lab.theme])


def run_all(page: Any) -> None:
    """Run all cells, and wait until the last has run and the page shows what came of it."""
    command(page, "notebook:run-all-cells")
    if not finished(page, "all cells have run"):
        raise RuntimeError(f"a cell has failed: {error_outputs(page)}")
    at_rest(page)


def run_cell(page: Any, index: int, source: str | None = None) -> str:
    """Run one code cell again, with this text if one is given; return what it prints."""
    start_cell(page, index, source)
    finished(page, f"code cell {index} has run")
    at_rest(page)
    return printed(page, index)


def start_cell(page: Any, index: int, source: str | None = None) -> None:
    """Begin to run one code cell; `finished` waits for its end. A negative index counts from the last."""
    command(page, "notebook:run-cell", index, source)


def command(page: Any, name: str, index: int | None = None, source: str | None = None) -> None:
    """Ask JupyterLab to do something with the notebook, or with one code cell of it; `finished` waits for its end."""
    page.evaluate(COMMAND, [name, index, source if source is None else source.strip()])


def finished(page: Any, what: str) -> Any:
    """Wait until JupyterLab has done what it was asked for last; return its answer."""
    wait_for(page, what, "() => window.asked.done === true")
    if error := page.evaluate("() => window.asked.error"):
        raise RuntimeError(error)
    return page.evaluate("() => window.asked.answer")


def printed(page: Any, index: int) -> str:
    """What a code cell has printed and what it gives, as text."""
    return page.evaluate(PRINTED, index)


def at_rest(page: Any) -> None:
    """Wait until the kernel has answered whatever the widgets have sent, and every picture is there."""
    wait_for(page, "the kernel has answered, and all pictures are there", AT_REST)


def error_outputs(page: Any) -> list[str]:
    """What cells have written to stderr or raised."""
    kinds = [f".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.{kind}']" for kind in ("stderr", "error")]
    return page.locator(", ".join(kinds)).all_inner_texts()


def pixels(image: Any) -> np.ndarray:
    """What an <img> really shows: shape (height, width, 3)."""
    # While a widget is given its next picture there is none for a moment, so it is looked at again.
    data = image.evaluate(
        """async (img, patience) => {
        const end = performance.now() + 1000 * patience;
        for (;;) {
            await img.decode().catch(() => {});
            if (img.complete && img.naturalWidth > 0) break;
            if (performance.now() > end) throw new Error(`a picture did not come in ${patience} s`);
            await new Promise(r => setTimeout(r, 25));
        }
        const canvas = document.createElement('canvas');
        canvas.width = img.naturalWidth; canvas.height = img.naturalHeight;
        canvas.getContext('2d').drawImage(img, 0, 0);
        return canvas.toDataURL('image/png').split(',')[1]; }""",
        PATIENCE,
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def write_notebook(path: Path, *sources: str) -> None:
    """A notebook of code cells."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
