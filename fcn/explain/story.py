"""What the topics tell with: words, claims checked on the spot, numbered pictures; and the page."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from fcn.config import UserError
from fcn.page import figure, page

WIDE = 700  # pixels; on a phone such a picture scrolls rather than shrinks


class ClaimError(UserError, AssertionError):
    """A claim that turned out false: the story is not told."""


class Section:
    """One topic of the story, told in order.

    Args: number: its place. key: what `explain=` calls it. title: a sentence.
    Attributes: pictures: file name -> image, numbered in order.
    """

    def __init__(self, number: int, key: str, title: str) -> None:
        self.number, self.key, self.title = number, key, title
        self.blocks: list[Markup] = []
        self.pictures: dict[str, Image.Image] = {}
        self.claims = 0

    def text(self, *paragraphs: str) -> None:
        """Paragraphs of the project's own HTML; what comes from elsewhere is escaped before."""
        self.blocks += [Markup(f"<p>{_tidy(words)}</p>") for words in paragraphs]

    def claim(self, words: str, difference: float, limit: float = 1e-10) -> None:
        """A statement with the largest difference found between its two sides.

        Raises: ClaimError: it exceeds the limit.
        """
        if not difference <= limit:
            raise ClaimError(f"{self.key}: {words}: differs by {difference:.3g} (limit {limit:g})")
        self.claims += 1
        shown = "exactly equal" if difference == 0 else f"largest difference {difference:.1e}"
        self.blocks.append(
            Markup(
                '<p class="claim">{} <span class="soft">Computed just now: {}.</span></p>'
            ).format(Markup(_tidy(words)), shown)
        )

    def picture(self, name: str, image: Image.Image, caption: str, *, plot: bool = True) -> None:
        """Args: caption: plain text, which serves as the alternative text too."""
        file = f"{self.number:02d}_{len(self.pictures) + 1}_{name}.png"
        self.pictures[file] = image
        shown = figure(image, caption, caption, plot=plot)
        self.blocks.append(
            Markup('<div class="wide">{}</div>').format(shown) if image.width > WIDE else shown
        )

    def table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Rows of plain text; the first column is words, the others are numbers."""

        def cells(tag: str, row: Sequence[object]) -> Markup:
            words, *numbers = row
            result = Markup("<{0}>{1}</{0}>").format(tag, words)
            for number in numbers:
                result += Markup('<{0} class="number">{1}</{0}>').format(tag, number)
            return Markup("<tr>{}</tr>").format(result)

        body = Markup("").join(cells("td", row) for row in rows)
        self.blocks.append(
            Markup(
                '<div class="scroll"><table><thead>{}</thead><tbody>{}</tbody></table></div>'
            ).format(cells("th", head), body)
        )


def write(sections: Sequence[Section], folder: Path) -> Path:
    """The pictures as NN_M_NAME.png and the story as explain.html, whole or not at all."""
    for section in sections:
        for name, image in section.pictures.items():
            _move_in(folder / name, partial(image.save, format="PNG"))
    contents = Markup("").join(
        Markup('<li><a href="#{}">{}</a></li>').format(s.key, s.title) for s in sections
    )
    body = Markup("{}<ol>{}</ol>{}").format(
        INTRODUCTION, contents, Markup("").join(_html(section) for section in sections)
    )
    path = folder / "explain.html"
    html = page("What are deconvolutional layers?", body)
    _move_in(path, lambda part: part.write_text(html, encoding="utf-8"))
    return path


def _html(section: Section) -> Markup:
    return Markup('<section><h2 id="{}">{}. {}</h2>{}</section>').format(
        section.key, section.number, section.title, Markup("\n").join(section.blocks)
    )


def _move_in(path: Path, save: Callable[[Path], Any]) -> None:
    part = path.with_name(path.name + ".part")
    save(part)
    part.replace(path)


def _tidy(words: str) -> str:
    return re.sub(r"\s+", " ", words).strip()


INTRODUCTION = Markup(
    _tidy(
        """
        <style>.claim { border-left: 3px solid var(--accent); padding-left: 0.8rem; }
        section figure { margin: 1.25rem 0; }
        @media (max-width: 44rem) {
          .wide figure { overflow-x: auto; } .wide img { max-width: none; width: 44rem; }
        }</style>
        <h1>What are deconvolutional layers?</h1>
        <p>Nets that label every pixel shrink the image on the way to knowing what is in it, and
        must grow their answer back to the image's size. Fully convolutional networks (FCNs; Long,
        Shelhamer &amp; Darrell 2015, "the paper" below) do so with a layer of many names:
        deconvolution, transposed convolution, backwards or fractionally strided convolution. How
        can a convolution be turned round, what does such a layer compute, how is it trained, and
        does training it help? Every number here was computed as the page was made, and had a marked
        statement turned out false, there would be no page. In all pictures red is positive, blue
        is negative.</p>
        """
    )
)
