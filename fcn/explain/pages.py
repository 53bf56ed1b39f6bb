"""The pages: explain.html, explorer.html and index.html, each one file that fetches nothing."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from PIL import Image
from torch.nn import functional as F

from fcn.explain.demo import Subject
from fcn.explain.show import show
from fcn.models.upsampling import TransposedConvolution
from fcn.output import atomic_write
from fcn.pictures.page import page, templates

EXPLORER = Path(__file__).with_name("explorer")
PAGES = ("explain.html", "index.html", "explorer.html", "preview.png")
TITLE = "What are deconvolutional layers?"
DESCRIPTION = (
    "Transposed convolution with all its numbers: stamps, zeros, padding, channels, checkerboards, "
    "and whether it must be learned. Every number is computed."
)
# What the built page may load: nothing, except what stands in it.
POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
)


@dataclass(frozen=True)
class Section:
    """A topic on the page: its anchor, its number among all topics, its heading, and HTML."""

    key: str
    number: int
    title: str
    html: Markup


def write_pages(sections: Sequence[Section], folder: Path, subject: Subject | None = None) -> Path:
    """Write the pages, with the subject's learned kernels in the explorer; return explain.html."""
    for name in ("explain.html", "index.html"):
        body = templates().get_template(f"explain/{name}").render(sections=sections)
        _write(folder / name, page(TITLE, body, description=DESCRIPTION))
    preview().save(folder / "preview.png")
    _write(folder / "explorer.html", explorer(learned_kernels(subject) if subject else {}))
    return folder / "explain.html"


def preview() -> Image.Image:
    """Draw the link preview image, 1200 x 630: a layer that doubles 2 x 2."""
    x, w = torch.tensor([[1.0, 2], [3, 4]]), torch.arange(1.0, 17).view(4, 4)
    y = F.conv_transpose2d(x[None, None], w[None, None], stride=2, padding=1)
    drawn = show({"x": x, "kernel": w, "stride 2, padding 1: output": y}, "").images
    whole, left = Image.new("RGB", (1200, 630), "white"), 60
    for image in drawn.values():
        large = image.resize((2 * image.width, 2 * image.height), Image.Resampling.LANCZOS)
        whole.paste(large, (left, 90))
        left += large.width + 20
    return whole


def section(key: str, number: int, notebook: Any) -> Section:
    """Convert an executed notebook to a section; its headings go down one level."""
    from nbconvert import HTMLExporter

    notebook = notebook.copy()
    heading, *rest = notebook.cells[0].source.splitlines()
    title = heading.removeprefix("# ")
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub("^#", "##", cell.source, flags=re.MULTILINE)
        elif re.search(r"^\s*assert ", cell.source, re.MULTILINE):
            cell.metadata["tags"] = ["checked"]
    notebook.cells[0].source = "\n".join([f"## {number}. {title}", *rest])
    exporter = HTMLExporter(template_name="basic", exclude_anchor_links=True)
    exporter.exclude_input_prompt = exporter.exclude_output_prompt = True
    html, _ = exporter.from_notebook_node(notebook)
    return Section(key, number, title, Markup(html))


def explorer(kernels: dict[str, list[list[float]]]) -> str:
    """Return explorer/index.html with its styles and scripts inside.

    Args:
        kernels: name -> learned weights (k, k), offered beside the built-in ones.
    """
    html = (EXPLORER / "index.html").read_text(encoding="utf-8")

    def inline(match: re.Match[str]) -> str:
        tag = "style" if match[1].endswith(".css") else "script"
        text = (EXPLORER / match[1]).read_text(encoding="utf-8")
        return f"<{tag}>\n{text}</{tag}>"

    html = html.replace('<link rel="icon"', f'{POLICY}\n<link rel="icon"')
    html = html.replace(' hidden id="longer"', ' id="longer"')
    html = re.sub(r'<link rel="stylesheet" href="([\w.]+)">', inline, html)
    html = re.sub(r'<script src="([\w.]+)"></script>', inline, html)
    data = json.dumps(kernels).replace("<", r"\u003c")  # names are text, whatever they hold
    return html.replace('type="application/json">{}<', f'type="application/json">{data}<')


def learned_kernels(subject: Subject) -> dict[str, list[list[float]]]:
    """Return the kernels of doubling layers from each class to itself, by layer and class."""
    return {
        f"{name}: {label}": [[float(f"{weight:.5g}") for weight in row] for row in kernel.tolist()]
        for name, layer in subject.model.named_modules()
        if isinstance(layer, TransposedConvolution) and layer.factor == 2
        for label, kernel in zip(subject.classes, layer.diagonal(), strict=True)
    }


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
