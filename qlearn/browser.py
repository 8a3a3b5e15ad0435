"""In a browser: files of the site that are fetched when they are first asked for."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=8)
def fetched(name: str) -> bytes:
    """A file that lies on the site beside the packages. Python waits for it: it runs beside the page, not in it.

    Raises:
        OSError: the site has no such file, or cannot be reached.
    """
    from js import XMLHttpRequest  # type: ignore[import-not-found]
    from pyodide_js import _api  # type: ignore[import-not-found]

    request = XMLHttpRequest.new()
    request.open("GET", f"{_api.config.indexURL}{name}", False)
    request.responseType = "arraybuffer"
    try:
        request.send()
        status = request.status
    except Exception as error:  # a JavaScript error has a type of its own in Python
        raise OSError(f"{name} does not come along into the browser, and could not be fetched: {error}.") from error
    if status != 200:
        raise OSError(f"{name} does not come along into the browser, and the site answers {status} when asked for it.")
    return bytes(request.response.to_bytes())
