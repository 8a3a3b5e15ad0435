"""The site is built once, as `make site LITE=none` does it, and shown by a server. SITE names one that is there."""

import functools
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import real_lab
from dev import ROOT


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder."""
    if built := os.environ.get("SITE"):
        return Path(built).resolve()
    out = tmp_path_factory.mktemp("built") / "site"
    command = [sys.executable, str(ROOT / "tools/website.py"), str(out)]
    done = subprocess.run(command, env=os.environ | {"LITE": "none"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def address(site):
    """Where a server of this computer shows it."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def page():
    """A page of a browser that writes down what it asks for: `page.asked` are addresses."""
    if not real_lab.browser_path():
        line = "no Chromium or Chrome found: install one, or name it in CHROMIUM"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(line)
        pytest.skip(line)
    with real_lab.browser_page() as page:
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        yield page
