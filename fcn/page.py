"""HTML pages that open from disk: one file each, with its pictures inside; nothing is fetched.

`page.html` next to this file holds the look of every page, light and dark.
"""

import base64
import io
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image


@cache
def templates() -> Environment:
    """Return the package's HTML templates, by their path below fcn/; they escape every value."""
    return Environment(
        loader=PackageLoader("fcn", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page(title: str, body: str) -> str:
    """Return a complete HTML document.

    Args:
        title: plain text.
        body: HTML, inserted as it is.
    """
    return templates().get_template("page.html").render(title=title, body=Markup(body))


def figure(image: Image.Image, alt: str, caption: str = "", *, plot: bool = False) -> Markup:
    """Return an HTML figure, as wide as the image unless there is less room.

    Args:
        image: the picture.
        alt: description in plain text.
        caption: plain text.
        plot: dark ink on white: inverted on a dark page, and shown at 3/4 of its pixels.
    """
    kind, scale = ("plot", 0.75) if plot else ("picture", 1)
    width, height = (round(n * scale) for n in image.size)
    below = Markup("<figcaption>{}</figcaption>").format(caption) if caption else ""
    return Markup(
        '<figure class="{}"><img src="{}" width="{}" height="{}" alt="{}">{}</figure>'
    ).format(kind, data_uri(image), width, height, alt, below)


def data_uri(image: Image.Image, jpeg_quality: int | None = None) -> str:
    """Return an image as the value of a `src` attribute.

    Args:
        image: the picture.
        jpeg_quality: 1..95 for a JPEG, which suits photographs; None: PNG, exact.
    """
    buffer = io.BytesIO()
    kind = "png" if jpeg_quality is None else "jpeg"
    if jpeg_quality is None:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.convert("RGB").save(buffer, "JPEG", quality=jpeg_quality, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
