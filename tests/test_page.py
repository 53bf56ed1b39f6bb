"""One file, nothing fetched, and no text that becomes markup."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from fcn import page

NASTY = "<b>&\"x'"


class Reader(HTMLParser):
    """Collects start tags as (name, attributes), and the text between."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def decoded(uri: str) -> Image.Image:
    kind, _, content = uri.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == f"data:image/{str(image.format).lower()}"
    return image


def test_a_page_is_whole_escapes_its_title_and_keeps_its_body() -> None:
    text = page.page(NASTY, '<p id="kept">1 &lt; 2</p>')
    read = Reader(text)
    assert text.startswith("<!doctype html>")
    assert ("p", {"id": "kept"}) in read.tags
    assert "b" not in {tag for tag, _ in read.tags}
    assert NASTY in read.text
    assert not {"http:", "https:", "url(", "@import"} & set(text.replace("(", "( ").split())
    policy = next(a["content"] for t, a in read.tags if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_pictures_survive_their_data_uri() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(decoded(page.data_uri(Image.fromarray(pixels)))), pixels)
    mask = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    mask.putpalette(list(range(36)))
    clear = decoded(page.data_uri(mask, transparent=2))
    assert clear.mode == "P"
    alpha = np.asarray(clear.convert("RGBA"))[..., 3]
    assert (alpha == np.where(np.asarray(mask) == 2, 0, 255)).all()
    smooth = Image.linear_gradient("L").convert("RGB")
    photo = decoded(page.data_uri(smooth, jpeg_quality=90))
    assert photo.format == "JPEG"
    assert np.abs(np.asarray(photo, int) - np.asarray(smooth, int)).max() < 6


@pytest.mark.parametrize("plot", [False, True])
def test_a_figure_escapes_its_texts(plot: bool) -> None:
    shown = page.figure(Image.new("RGB", (12, 8)), NASTY, NASTY, plot=plot)
    read = Reader(shown)
    assert [tag for tag, _ in read.tags] == ["figure", "img", "figcaption"]
    image = read.tags[1][1]
    assert image["alt"] == NASTY
    assert (image["width"], image["height"]) == (("9", "6") if plot else ("12", "8"))
    assert read.text == NASTY
    assert "figcaption" not in page.figure(Image.new("RGB", (3, 2)), "alone")
