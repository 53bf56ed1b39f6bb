"""Exports that are no folder yet: archives and data sets of Hugging Face, unpacked to one."""

import io
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fcn.convert.annotation_folder import MASK_WORDS, strip_words
from fcn.data.files import is_image, walk
from fcn.data.images import file_errors
from fcn.errors import DataError

HUB = "hf://datasets/"


def is_table(source: str) -> bool:
    """Return True if an export is a data set on the Hub, or a folder of tables without pictures."""
    files = [*walk(Path(source))] if Path(source).is_dir() else []
    tables = any(path.suffix in (".parquet", ".arrow") for path in files)
    return source.startswith(HUB) or (tables and not any(map(is_image, files)))


def unpack_zip(path: Path, target: Path) -> Path:
    """Unpack an archive below a folder, and return the folder of the export in it."""
    target = target / path.name
    target.mkdir()  # for an archive that is empty
    with file_errors(path, "archive"), zipfile.ZipFile(path) as archive:
        archive.extractall(target)  # no file gets outside
    while len(inner := [p for p in target.iterdir() if p.name[:1] not in "._"]) == 1:
        if not inner[0].is_dir():
            break
        target = inner[0]
    return target


def unpack_table(source: str, target: Path, images: str | None, masks: str | None) -> Path:
    """Write a data set in tables as SPLIT/images and SPLIT/masks, and classes.txt if it has names.

    Args:
        source: hf://datasets/NAME, or a folder of parquet or arrow files.
        target: the folder to write below.
        images: the column of the images; None: the one that is no mask.
        masks: the column of the masks; None: the one that is called label, mask, annotation.

    Raises:
        DataError: the data set cannot be loaded, or it is not clear which columns are meant.
    """
    try:
        import datasets  # of the extra [datasets]
    except ImportError:
        raise DataError(f'{source}: to read it: pip install "fcn-segmentation[datasets]"') from None
    datasets.disable_progress_bars()
    try:
        if any(Path(source, name).is_file() for name in ("state.json", "dataset_dict.json")):
            splits = datasets.load_from_disk(source)
        else:
            cache = None if source.startswith(HUB) else str(target / "cache")
            splits = datasets.load_dataset(source.removeprefix(HUB), cache_dir=cache)
    except Exception as error:  # of the network, of tables
        reason = " ".join(str(error).split())
        raise DataError(f"{source}: cannot be loaded ({reason}); check its name") from None
    root = target / "tables"
    root.mkdir()
    if (names_file := Path(source, "id2label.json")).is_file():
        shutil.copy(names_file, root)
    for split, rows in splits.items() if isinstance(splits, dict) else [("", splits)]:
        image, mask = _columns(source, rows.features, datasets.Image, images, masks)
        if names := _class_names(rows.features[mask]):
            (root / "classes.txt").write_text("\n".join(names), encoding="utf-8")
        for column in (image, mask):
            if isinstance(rows.features[column], datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
        for number, row in enumerate(rows.select_columns([image, mask])):
            name = f"{number:06}"
            if isinstance(row[image], dict) and row[image]["path"]:
                name += f"_{Path(row[image]['path']).stem}"
            _write(row[image], root / split / "images", name)
            _write(row[mask], root / split / "masks", name)
    return root


def _columns(
    source: str, features: dict[str, Any], kind: Any, images: str | None, masks: str | None
) -> tuple[str, str]:
    """Return the columns of images and masks."""
    pictures = [name for name, feature in features.items() if isinstance(feature, kind)]
    found = [name for name in features if strip_words(name, MASK_WORDS)[1]]
    found = [masks] if masks else [n for n in found if n in pictures] or found
    others = [images] if images else [name for name in pictures if name not in found]
    if len(found) != 1 or len(others) != 1 or not {*found, *others} <= {*features}:
        raise DataError(
            f"{source}: its columns are {', '.join(features)}; say which are meant: images=COLUMN "
            "masks=COLUMN"
        )
    return others[0], found[0]


def _class_names(feature: Any) -> list[str]:
    """Return the names of the labels in a column of lists of lists, if it has any."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    return list(getattr(feature, "names", []))


def _write(content: Any, folder: Path, name: str) -> None:
    """Write an image as it is stored, or an array of labels as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    with file_errors(folder / name, "picture"):
        if isinstance(content, dict):
            stored = content["bytes"] or Path(content["path"]).read_bytes()
            with Image.open(io.BytesIO(stored)) as picture:
                suffix = str(picture.format).lower()
            (folder / f"{name}.{suffix}").write_bytes(stored)
        else:
            values = np.asarray(content)
            deep = np.uint8 if values.max() < 256 else np.uint16
            Image.fromarray(values.astype(deep)).save(folder / f"{name}.png")
