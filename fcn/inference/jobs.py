"""What a folder of predictions is to hold: which images go in, where they go, what is there.

Every output carries the stamp of what made it, so that a run that was interrupted knows its own
files from those of another checkpoint; nothing else needs to be remembered.
"""

import glob
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fcn.config import ConfigError
from fcn.inference import npz
from fcn.inference.checkpoint import FORMAT

Stamp = dict[str, Any]  # what decides a mask: the checkpoint's sha256, and settings by their keys


@dataclass(frozen=True)
class Job:
    """An image, and the files that are to be made of it."""

    image: Path
    mask: Path
    overlay: Path | None
    probabilities: Path | None

    @property
    def outputs(self) -> list[Path]:
        return [path for path in (self.overlay, self.probabilities, self.mask) if path is not None]


def find_images(source: str, output: Path, lines: Iterable[str]) -> dict[Path, Path]:
    """The images that `input=` means, in order -> what each is called: a path without ending.

    A folder's sub-folders, and those that a pattern's wildcards stand for, are kept in the names;
    hidden files, files of other endings than Pillow's and whatever lies in `output` are passed
    over. A file or a list's images go by their own names.

    Args: source: a file, a folder, a pattern, or - for the paths in `lines`, one a line.
    Raises: ConfigError: there is none, or a folder is to be its own output.
    """
    if source == "-":
        try:
            listed = [Path(line.rstrip("\r\n")) for line in lines if line.strip()]
        except UnicodeDecodeError as error:
            raise ConfigError(f"input=-: not a list in UTF-8 ({error})") from None
        if odd := [path for path in listed if not path.name or "\0" in str(path)]:
            raise ConfigError(f"input=-: {str(odd[0])!r} cannot be a file")
        if not listed:
            raise ConfigError("input=-: no paths on standard input; give one a line")
        return {path: Path(path.stem) for path in listed}
    base = Path(source)
    if base.is_file():
        return {base: Path(base.stem)}
    if base.is_dir():
        found = base.rglob("*")
        if output.resolve() == base.resolve():
            raise ConfigError(f"output={output} is the input folder itself; choose another")
    else:
        fixed = next((i for i, p in enumerate(base.parts) if glob.has_magic(p)), None)
        if fixed is None:
            raise ConfigError(f"input={source}: no such file or folder")
        found = (Path(path) for path in glob.iglob(source, recursive=True))
        base = Path(*base.parts[:fixed])
    inside = base.resolve()
    own = output.resolve().relative_to(inside) if output.resolve().is_relative_to(inside) else None
    Image.init()  # makes all of Pillow's formats known
    endings = {e for e, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    images = {}
    for path in sorted(found):
        name = path.relative_to(base)
        passed = own is not None and own != Path() and name.is_relative_to(own)
        hidden = any(part.startswith(".") for part in name.parts)
        if not (passed or hidden) and path.suffix.lower() in endings and path.is_file():
            images[path] = name.with_suffix("")
    if not images:
        raise ConfigError(f"input={source}: no image there of an ending that Pillow reads")
    return images


def plan(
    images: dict[Path, Path], output: Path, *, overlays: bool, probabilities: bool
) -> list[Job]:
    """What is to be written, and where.

    Raises: ConfigError: two images would go to one file, or one over an image.
    """
    jobs, sources = [], {image.resolve() for image in images}
    taken: dict[Path, Path] = {}
    for image, name in images.items():
        png = name.with_name(f"{name.name}.png")
        job = Job(
            image,
            output / png,
            output / "overlays" / png if overlays else None,
            output / name.with_name(f"{name.name}.npz") if probabilities else None,
        )
        for path in job.outputs:
            if path in taken:
                raise ConfigError(
                    f"{taken[path]} and {image} would both be written to {path}; rename one, or "
                    "give a folder that holds one alone: sub-folders are kept"
                )
            if path.resolve() in sources:
                raise ConfigError(f"{path} is an image to be read; choose another output")
            taken[path] = image
        jobs.append(job)
    return jobs


def is_done(job: Job, stamp: Stamp) -> bool:
    """Whether everything of an image is there, of this very making, and newer than the image.

    Raises: ConfigError: a file is there that another checkpoint, setting or program made.
    """
    there = [path for path in job.outputs if path.exists()]
    for path in there:
        theirs = _read_stamp(path)
        if theirs != stamp:
            different = [key for key in stamp if theirs is None or theirs.get(key) != stamp[key]]
            made = f"made with another {', '.join(different)}" if theirs else "none of predict.py's"
            raise ConfigError(f"{path} is {made}; choose another output, or overwrite=true")
    if len(there) < len(job.outputs) or not job.image.exists():
        return False
    return min(path.stat().st_mtime for path in there) >= job.image.stat().st_mtime


def _read_stamp(path: Path) -> Stamp | None:
    """What made a file; None if it is none of ours, or damaged."""
    try:
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file) as arrays:
                text = str(npz.array(arrays, "made_by", "U", 0))
        else:
            with Image.open(path) as image:
                text = image.info[FORMAT]
        stamp = json.loads(text)
    except Exception:  # a damaged file makes a decoder raise almost anything
        return None
    return stamp if isinstance(stamp, dict) else None
