"""One JupyterLab and one browser for all browser tests. No browser: skipped, but not where CI runs them."""

import os

import pytest

import real_lab


@pytest.fixture(scope="session")
def browser():
    if not (path := real_lab.browser_path()):
        line = "no Chromium or Chrome found: install one, or name it in CHROMIUM"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(line)
        pytest.skip(line)
    return path


@pytest.fixture(scope="session")
def lab(browser, tmp_path_factory):
    with real_lab.running_lab(tmp_path_factory.mktemp("notebooks")) as lab:
        yield lab


@pytest.fixture(scope="session")
def page(browser):
    with real_lab.browser_page() as page:
        yield page
