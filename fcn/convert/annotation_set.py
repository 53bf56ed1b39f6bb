"""What a reader of a format returns: images, how to read their masks, and the classes in them."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from fcn.convert.annotation_folder import AnnotationFolder, Item
from fcn.convert.drawing import Shape, draw
from fcn.data.images import image_size
from fcn.dataset_info import BACKGROUND, IGNORED
from fcn.errors import DataError

IGNORE = IGNORED[0]  # class name of pixels without a class


@dataclass
class AnnotationSet:
    """What a tool has written."""

    format: str
    items: list[Item]
    names: dict[int, str] = field(default_factory=dict)  # class of each value; empty: unknown
    colours: dict[str, list[int]] = field(default_factory=dict)  # RGB of classes
    notes: list[str] = field(default_factory=list)
    overlaps: dict[str, int] = field(default_factory=dict)  # pixels of several classes, by image
    check: Callable[[Iterable[int]], None] = lambda values: None  # raises if they do not fit
    classes: list[str] = field(default_factory=list)  # of classes.txt or dataset.yaml
    numbered_here: bool = False  # the values are numbers that the reader has given to `names`
    sources: set[Path] = field(default_factory=set)  # the annotation files that were read
    lists: dict[Path, str] = field(default_factory=dict)  # files that list the images of a split


@dataclass(frozen=True)
class Drawing:
    """The shapes of an image."""

    source: Path  # the file that holds them
    name: str  # of the image, as the source says it
    image: Path | None  # None: there is no such file
    shapes: Sequence[Shape]  # in the order in which they are drawn
    size: tuple[int, int] | None = None  # (width, height) of the image; None: as its file says
    split: str = ""  # if the name of the source says it

    @property
    def is_drawn(self) -> bool:
        """Return False of an image that is annotated, but by nothing that has an area."""
        return not self.shapes or any(shape.has_area for shape in self.shapes)


def with_background(names: Iterable[str]) -> list[str]:
    """Return the classes, each once, with that of the pixels that no shape covers as the first."""
    names = list(names)
    background = next((name for name in names if name.lower() in BACKGROUND), "background")
    return list(dict.fromkeys([background, *names]))


def drawn_set(
    title: str,
    folder: AnnotationFolder,
    drawings: Sequence[Drawing],
    classes: Iterable[str] = (),
    *,
    small_on_top: bool = False,
    notes: Iterable[str] = (),
) -> AnnotationSet:
    """Return an export whose masks are drawn from shapes; what no shape covers is background.

    Args:
        title: of the format.
        folder: the files.
        drawings: the annotated images. Those without a file are left out, and those that only
            shapes without an area annotate: what is background there is not known.
        classes: in the order of the labels; others follow by name.
        small_on_top: draw smaller shapes over larger ones, instead of later over earlier.
        notes: of the reader.

    Raises:
        DataError: no image is there, or none has a shape with an area.
    """
    drawings = _with_own_images(folder, drawings)
    shapes = [shape for drawing in drawings for shape in drawing.shapes]
    kinds = {shape.name: shape.kind for shape in shapes if shape.has_area}
    names = with_background([*classes, *sorted(kinds.keys() - {*classes})])
    labels, overlaps = {name: label for label, name in enumerate(names)}, dict[str, int]()
    items, notes, source = list[Item](), list(notes), drawings[0].source
    for drawing in drawings:
        if drawing.image and drawing.is_drawn:
            read = partial(_read, drawing, drawing.image, labels, small_on_top, overlaps)
            items.append(folder.item(drawing.image, drawing.source, read, drawing.split))
    if missing := [drawing for drawing in drawings if not drawing.image]:
        source = missing[0].source
        text = f"{source}: {len(missing)} of {len(drawings)} images are not there"
        if not items:
            raise DataError(f"{text}, such as {missing[0].name}; set images=FOLDER")
        text += f" and are left out, such as {missing[0].name}; if they lie elsewhere, "
        notes.append(text + "set images=FOLDER")
    if not kinds:
        raise DataError(
            f"{source}: no shape with an area in this file or another of {title}; annotate "
            "polygons or masks"
        )
    if flat := Counter(shape.kind for shape in shapes if not shape.has_area):
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(flat.items()))
        advice = "; line_width=10 draws lines of 10 pixels" if "line" in flat else ""
        notes.append(f"{flat.total()} shapes without an area are left out: {counts}{advice}")
    if bare := {d.image: 1 for d in drawings if d.image and not d.is_drawn}:
        text = f"{len(bare)} images that only such shapes annotate are left out, such as "
        notes.append(f"{text}{next(iter(bare))}")
        folder.photos = [photo for photo in folder.photos if photo not in bare]
    if empty := sum(not drawing.shapes for drawing in drawings if drawing.image):
        notes.append(f"{empty} images without annotations are all background")
    if {*kinds.values()} <= {"rectangle"}:
        notes.append("all shapes are boxes: a network learns to draw boxes from them")
    if small_on_top:
        notes.append("smaller shapes are drawn over larger ones")
    return AnnotationSet(
        title, items, dict(enumerate(names)), notes=notes, overlaps=overlaps, numbered_here=True,
        sources={drawing.source for drawing in drawings},
    )  # fmt: skip


def _with_own_images(folder: AnnotationFolder, drawings: Sequence[Drawing]) -> list[Drawing]:
    """Return the drawings without the images of others, and with their splits if there are several.

    If the annotations say several splits, an image in the folder of another one is another image.
    An image in the split and the folder that an annotation says belongs to no other annotation.
    """
    splits = [folder.said_split(d.name, d.source, d.split) for d in drawings]
    several, result = len({*splits} - {""}) > 1, list[Drawing]()
    pairs = zip(drawings, splits, strict=True)
    drawings = [replace(drawing, split=split if several else "") for drawing, split in pairs]
    taken = {d.image for d in drawings if d.image and all(folder.fits(d.image, d.name, d.split))}
    for drawing in drawings:
        if image := drawing.image:
            in_split, in_folder = folder.fits(image, drawing.name, drawing.split)
            is_other = image in taken and not (in_split and in_folder)
            if is_other or (drawing.split in folder.places and not in_split):
                drawing = replace(drawing, image=None)
        result.append(drawing)
    return result


def _read(
    drawing: Drawing,
    image: Path,
    labels: dict[str, int],
    small_on_top: bool,
    overlaps: dict[str, int],
) -> np.ndarray:
    """Draw the mask of an image, int64 (H, W), and note how many pixels several classes cover."""
    size, place = drawing.size or image_size(image), f"{drawing.source}: {drawing.name}"
    mask, overlaps[place] = draw(drawing.shapes, labels, size, small_on_top, place)
    return mask
