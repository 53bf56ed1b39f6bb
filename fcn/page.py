"""Pages that open from disk: one HTML file each, its pictures inside, nothing fetched.

The look of every page, light and dark, is `page.html`, beside this file.
"""

import base64
import io
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image


@cache
def templates() -> Environment:
    """The package's HTML templates by their path below fcn/; they escape whatever is put in."""
    return Environment(
        loader=PackageLoader("fcn", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page(title: str, body: str) -> str:
    """A whole HTML document. Args: title: plain text. body: HTML, taken as it is."""
    return templates().get_template("page.html").render(title=title, body=Markup(body))


def figure(image: Image.Image, alt: str, caption: str = "", *, plot: bool = False) -> Markup:
    """An HTML figure, as wide as there is room for, at most as wide as the image.

    Args: alt, caption: plain text. plot: dark ink on white, which is inverted on a dark page; shown
        at three quarters of its pixels, for screens that have more of them.
    """
    width, height = (round(n * (0.75 if plot else 1)) for n in image.size)
    return Markup(
        '<figure class="{}"><img src="{}" width="{}" height="{}" alt="{}">{}</figure>'
    ).format(
        "plot" if plot else "picture",
        data_uri(image),
        width,
        height,
        alt,
        Markup("<figcaption>{}</figcaption>").format(caption) if caption else "",
    )


def data_uri(
    image: Image.Image, *, jpeg_quality: int | None = None, transparent: int | None = None
) -> str:
    """The image as the text of a `src` attribute.

    Args: jpeg_quality: 1..95 for a JPEG, as photographs want; else PNG, exact. transparent: the
        palette entry of a mode "P" image to see through.
    """
    buffer = io.BytesIO()
    if jpeg_quality is not None:
        kind = "jpeg"
        image.convert("RGB").save(buffer, "JPEG", quality=jpeg_quality, optimize=True)
    else:
        kind = "png"
        how = {} if transparent is None else {"transparency": transparent}
        image.save(buffer, "PNG", optimize=True, **how)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
