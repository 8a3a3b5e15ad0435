"""What an explorer has sent to the page, as pixels."""

import base64
import io

import numpy as np
from PIL import Image


def picture(explorer):
    """The colours of an explorer's picture, shape (height, width, 3)."""
    return decoded(explorer._picture.value)


def decoded(value):
    """The same from the value of the picture's widget: a PNG, or an address that holds one."""
    kind, _, text = bytes(value).partition(b",")
    if kind == b"data:image/png;base64":
        value = base64.b64decode(text.rstrip(b" "), validate=True)
    return np.asarray(Image.open(io.BytesIO(value)).convert("RGB"))
