"""A user's own images and masks: images/SPLIT/NAME.* and annotations/SPLIT/NAME.png."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fcn.config import HIDDEN
from fcn.data.files import Pair, SegmentationFiles, read_list
from fcn.data.reading import DataError


def folder(
    root: Path,
    split: str,
    *,
    classes: Sequence[str] = (),
    ignore_index: int = 255,
    strict: bool = True,
) -> SegmentationFiles:
    """A split of a folder of images and masks, paired by name, in the order of their names.

    Ids are SPLIT/NAME: the same name in two splits is as a rule another picture.

    Args:
        root: holds images/`split`/ (any endings that Pillow knows, in any case) and
            annotations/`split`/NAME.png.
        classes: names, background first; if none, the lines of root/classes.txt.
        strict: as for SegmentationFiles.
    Raises: DataError: a folder, the names or a mask is missing, or two images share a name.
    """
    images, masks = root / "images" / split, root / "annotations" / split
    for part in (images, masks):
        if not part.is_dir():
            raise DataError(
                f"{part}: no such folder; data=folder wants images/SPLIT/NAME.jpg (or .png) and "
                "annotations/SPLIT/NAME.png below data.root"
            )
    pairs = [
        Pair(f"{split}/{path.stem}", path, masks / f"{path.stem}.png")
        for path in sorted(images.iterdir())
        if not path.name.startswith(".") and path.suffix.lower() in Image.registered_extensions()
    ]
    if strict and (lone := [p for p in pairs if not (masks / p.mask.name).is_file()]):
        raise DataError(
            f"{lone[0].image}: no mask at {lone[0].mask} ({len(lone)} of {len(pairs)} images have "
            "none); add the masks, or take the images out"
        )
    names = list(classes) or _class_names(root / "classes.txt")
    return SegmentationFiles(
        pairs, names, ignore_index, f"folder {split} ({images})", strict=strict
    )


def _class_names(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(
            f"{path}: not found; write the class names there, one a line, background first, or "
            "give data.classes=[background,...]"
        )
    names = read_list(path)
    if len(names) < 2:
        raise DataError(f"{path}: at least 2 class names are needed, got {len(names)}")
    if odd := [name for name in names if HIDDEN.search(name)]:
        raise DataError(f"{path}: class name {odd[0][:100]!r} has characters that do not print")
    return names
