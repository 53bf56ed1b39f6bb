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
    loader = PackageLoader("fcn", "")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def page(title: str, body: str, description: str = "") -> str:
    """Return a complete HTML document.

    Args:
        title: plain text.
        body: HTML.
        description: plain text that other sites show next to a link.
    """
    template = templates().get_template("pictures/page.html")
    return template.render(title=title, body=Markup(body), description=description)


def figure(image: Image.Image, alt: str, caption: str = "", *, plot: bool = False) -> Markup:
    """Return an HTML figure, as wide as the image unless there is less room.

    Args:
        image: the picture.
        alt: description in plain text.
        caption: plain text.
        plot: dark ink on white: inverted on a dark page, and shown at 3/4 of its pixels.
    """
    kind, width = ("plot", round(0.75 * image.width)) if plot else ("picture", image.width)
    below = Markup("<figcaption>{}</figcaption>").format(caption) if caption else ""
    html = '<figure class="{}"><img src="{}" width="{}" alt="{}">{}</figure>'
    return Markup(html).format(kind, data_uri(image), width, alt, below)


def data_uri(image: Image.Image, kind: str = "png") -> str:
    """Return an image as the value of a `src` attribute; kind "jpeg" suits photographs."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=80, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
