"""A real JupyterLab with a real browser, for tests and for pictures of the lessons.

    with running_lab(folder) as lab, browser_page() as page:
        open_notebook(page, lab, "lesson.ipynb")
        run_all(page)

The server listens on this computer only, with a token, and keeps its settings in a throw-away folder.
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
from collections.abc import Iterator
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

# No news over the page; and every cell in the page, also those that have been scrolled away.
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}


@dataclass(frozen=True)
class Lab:
    """A running server: its address, its token, and the folder that it shows."""

    url: str
    token: str
    folder: Path


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
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        lab = Lab(f"http://127.0.0.1:{port}", secrets.token_hex(16), folder)
        log = home / "lab.log"
        command = [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1"),
            *(f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={lab.token}"),
            *(f"--ServerApp.root_dir={folder}", f"--LabApp.app_settings_dir={home / 'settings'}"),
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
    for _ in range(600):
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{lab.url}/api/status?token={lab.token}", timeout=2).close()
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
def browser_page(width: int = 1280, height: int = 900, device_scale: float = 1) -> Iterator[Any]:
    """A page of a headless browser; `page.complaints` gathers the errors of its console."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path() or None, args=BROWSER_OPTIONS)
        page: Any = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=device_scale)
        page.complaints = []
        page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        yield page
        browser.close()


def open_notebook(page: Any, lab: Lab, name: str) -> None:
    """Show one notebook of the lab's folder and wait for its kernel."""
    page.goto(f"{lab.url}/doc/tree/{name}?token={lab.token}&reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=60_000)


def run_all(page: Any, timeout: float = 180) -> None:
    """Run all cells, and wait for the last.

    Asked before the kernel is really connected, "Run All Cells" is dropped without a word; so it is asked again.
    """
    # Folded cells have neither text nor prompt in the page; cells run in order, so the open ones speak for them.
    prompts = """() => [...document.querySelectorAll('.jp-CodeCell')]
        .filter(cell => cell.querySelector('.cm-content')?.innerText.trim())
        .map(cell => cell.querySelector('.jp-InputPrompt')?.innerText || '')"""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        page.locator(".jp-CodeCell .cm-content").first.click()
        page.get_by_role("menuitem", name="Run", exact=True).first.click()
        page.locator(".lm-Menu").get_by_text("Run All Cells", exact=True).click()
        asked = time.monotonic()
        while time.monotonic() < end:
            found = page.evaluate(prompts)
            if all(any(letter.isdigit() for letter in prompt) for prompt in found):
                return
            started = any(letter.isdigit() or letter == "*" for prompt in found for letter in prompt)
            if not started and time.monotonic() - asked > 4:
                break
            time.sleep(0.1)
    raise TimeoutError(f"after {timeout:.0f} s these cells had not run: {found}")


def run_cell(page: Any, index: int, source: str | None = None) -> str:
    """Run one code cell again, with this text if one is given; return what it prints."""
    cell = page.locator(".jp-CodeCell").nth(index)
    number = cell.locator(".jp-InputPrompt").inner_text()
    cell.locator(".cm-content").click()
    if source is not None:
        page.keyboard.press("Control+a")
        page.keyboard.insert_text(source.strip())
    page.keyboard.press("Control+Enter")
    page.wait_for_function(
        "([cell, before]) => { const now = cell.querySelector('.jp-InputPrompt').innerText;"
        " return now !== before && /\\d/.test(now); }",
        arg=[cell.element_handle(), number],
    )
    output = cell.locator(".jp-OutputArea")
    return output.inner_text() if output.count() else ""


def error_outputs(page: Any) -> list[str]:
    """What cells have written to stderr or raised."""
    kinds = [f".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.{kind}']" for kind in ("stderr", "error")]
    return page.locator(", ".join(kinds)).all_inner_texts()


def pixels(image: Any) -> np.ndarray:
    """What an <img> really shows: shape (height, width, 3)."""
    # decode() fails for a moment when a widget is given its next picture, so it is tried again.
    data = image.evaluate("""async (img) => {
        for (let k = 0; k < 40; k++) {
            try { await img.decode(); break; } catch (e) { await new Promise(r => setTimeout(r, 25)); }
        }
        const canvas = document.createElement('canvas');
        canvas.width = img.naturalWidth; canvas.height = img.naturalHeight;
        canvas.getContext('2d').drawImage(img, 0, 0);
        return canvas.toDataURL('image/png').split(',')[1]; }""")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def write_notebook(path: Path, *sources: str) -> None:
    """A notebook of code cells."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
