"""A user's own images and masks: images/SPLIT/NAME.* and annotations/SPLIT/NAME.png."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fcn.data.files import DataError, Pair, SegmentationFiles


def folder(
    root: Path, split: str, *, classes: Sequence[str] = (), ignore_index: int = 255
) -> SegmentationFiles:
    """A split of a folder of images and masks, paired by name, in the order of their names.

    Ids are SPLIT/NAME: the same name in two splits is as a rule another picture.

    Args:
        root: holds images/`split`/ (any endings that Pillow knows, in any case) and
            annotations/`split`/NAME.png.
        classes: names, background first; if none, the lines of root/classes.txt.
    Raises: DataError: a folder, the names or a mask is missing, or two images share a name.
    """
    images, masks = root / "images" / split, root / "annotations" / split
    for part in (images, masks):
        if not part.is_dir():
            raise DataError(
                f"{part}: no such folder; data=folder wants images/SPLIT/NAME.jpg (or .png) and "
                "annotations/SPLIT/NAME.png below data.root"
            )
    pairs: dict[str, Pair] = {}
    for path in sorted(images.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in Image.registered_extensions():
            continue
        if path.stem in pairs:
            raise DataError(
                f"{path}: {pairs[path.stem].image.name} has the same name; rename or remove one"
            )
        pairs[path.stem] = Pair(f"{split}/{path.stem}", path, masks / f"{path.stem}.png")
    if lone := [pair for name, pair in pairs.items() if not (masks / f"{name}.png").is_file()]:
        raise DataError(
            f"{lone[0].image}: no mask at {lone[0].mask} ({len(lone)} of {len(pairs)} images have "
            "none); add the masks, or take the images out"
        )
    names = list(classes) or _class_names(root / "classes.txt")
    return SegmentationFiles(
        list(pairs.values()), names, ignore_index, f"folder {split} ({images})"
    )


def _class_names(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(
            f"{path}: not found; write the class names there, one a line, background first, or "
            "give data.classes=[background,...]"
        )
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    names = [name for name in names if name]
    if len(names) < 2:
        raise DataError(f"{path}: at least 2 class names are needed, got {len(names)}")
    return names
