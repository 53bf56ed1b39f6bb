"""What a reader of a format returns: images, how to read their masks, and the classes in them."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fcn.convert.drawing import Shape, draw
from fcn.convert.export_folder import ExportFolder, Item
from fcn.data.images import image_size
from fcn.dataset_info import BACKGROUND
from fcn.errors import DataError

IGNORE = "ignore"  # class name of pixels without a class


@dataclass(frozen=True)
class Reading:
    """How the settings want an export to be read.

    Args:
        scratch: an empty folder for images that are no files yet.
        colours: the colours of masks are classes, even in palettes and in grey.
        nearest: smoothed boundaries go to the nearest class.
        mapped: settings say what the values mean, whatever the export says.
        lossless: values other than black and white count.
        line_width: of lines, in pixels; None: as the tool draws them, if it does.
        classes: the names in the settings or beside the data.
    """

    scratch: Path
    colours: bool = False
    nearest: bool = False
    mapped: bool = False
    lossless: bool = False
    line_width: float | None = None
    classes: Sequence[str] = ()


@dataclass
class Export:
    """What a tool has written."""

    format: str
    items: list[Item]
    names: dict[int, str] = field(default_factory=dict)  # class of each value; empty: unknown
    colours: dict[str, list[int]] = field(default_factory=dict)  # RGB of classes
    notes: list[str] = field(default_factory=list)
    overlaps: dict[str, int] = field(default_factory=dict)  # pixels of several classes, by image
    check: Callable[[Iterable[int]], None] = lambda values: None  # raises if they do not fit


@dataclass(frozen=True)
class Drawing:
    """An annotated image.

    Args:
        source: the file that holds the shapes.
        image: the image, or its name as the source says it.
        shapes: in the order in which they are drawn.
        size: (width, height) of the image; None: as its file says.
        split: train, val or test; "" if the source does not say.
    """

    source: Path
    image: Path | str
    shapes: Sequence[Shape]
    size: tuple[int, int] | None = None
    split: str = ""


def with_background(names: Iterable[str]) -> list[str]:
    """Return the classes, each once, with that of the pixels that no shape covers as the first."""
    names = list(dict.fromkeys(names))
    background = next((name for name in names if name.lower() in BACKGROUND), "background")
    return list(dict.fromkeys([background, *names]))


def drawn_export(
    title: str,
    folder: ExportFolder,
    drawings: Sequence[Drawing],
    classes: Iterable[str] = (),
    *,
    small_on_top: bool = False,
    notes: Iterable[str] = (),
) -> Export:
    """Return an export whose masks are drawn from shapes; what no shape covers is background.

    Args:
        title: of the format.
        folder: the files.
        drawings: the annotated images; those whose file is not there are noted.
        classes: in the order of the labels; others follow by name.
        small_on_top: draw smaller shapes over larger ones, instead of later over earlier.
        notes: of the reader.

    Raises:
        DataError: none of the images is there.
    """
    found = {shape.name for drawing in drawings for shape in drawing.shapes if shape.is_drawn}
    names = with_background([*classes, *sorted(found - {*classes})])
    labels, overlaps, notes = {n: k for k, n in enumerate(names)}, dict[str, int](), list(notes)
    items, missing, left_out, empty = list[Item](), list[Drawing](), Counter[str](), 0
    for drawing in drawings:
        image = drawing.image
        if isinstance(image, str):
            image = folder.find_image(image, drawing.source, drawing.split)
        if image is None:
            missing.append(drawing)
            continue
        left_out.update(shape.kind for shape in drawing.shapes if not shape.is_drawn)
        shapes = [shape for shape in drawing.shapes if shape.is_drawn]
        empty += not drawing.shapes

        def read(
            image: Path = image, drawing: Drawing = drawing, shapes: list[Shape] = shapes
        ) -> np.ndarray:
            mask, overlaps[str(image)] = draw(
                shapes,
                labels,
                drawing.size or image_size(image),
                small_on_top=small_on_top,
                place=f"{drawing.source}: {image.name}",
            )
            return mask

        item = folder.item(image, drawing.source, read)
        items.append(replace(item, split=drawing.split or item.split))
    if missing:
        text = f"{len(missing)} of {len(drawings)} images in {missing[0].source.name} are not there"
        if not items:
            raise DataError(f"{folder.root}: {text}, such as {missing[0].image}; set images=FOLDER")
        notes.append(f"{text} and are left out, such as {missing[0].image}")
    if left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
        lines = "; line_width=10 draws lines of 10 pixels" if "line" in left_out else ""
        notes.append(f"{left_out.total()} shapes without an area are left out: {kinds}{lines}")
    if empty:
        notes.append(f"{empty} images without annotations are all background")
    if small_on_top:
        notes.append("smaller objects are drawn over larger ones")
    return Export(title, items, dict(enumerate(names)), notes=notes, overlaps=overlaps)
