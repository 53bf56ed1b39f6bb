"""Which files of a folder are images, and what is to be done about those that cannot be read."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from unicodedata import normalize

from PIL import Image

# What Pillow knows by name alone: it has no decoder for these.
UNDECODED = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
HEIF = (".heic", ".heif", ".hif")  # Pillow reads them by pillow-heif, of the extra [heif]
# What a folder of images may hold beside them: text, and what systems and tools leave behind.
COMPANIONS = {
    "", ".aae", ".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".lnk", ".log", ".md", ".py",
    ".rst", ".toml", ".tsv", ".txt", ".url", ".xml", ".xmp", ".yaml", ".yml",
    ".aux", ".dbf", ".jgw", ".ovr", ".pgw", ".prj", ".shp", ".shx", ".tfw",  # of maps
}  # fmt: skip
RAW = ".3fr .arw .cr2 .cr3 .crw .dng .erf .nef .nrw .orf .pef .raf .raw .rw2 .sr2 .srw"
REMEDIES = {
    " ".join(HEIF): 'to read them: pip install "fcn-segmentation[heif]"',
    RAW: "develop them to 16-bit TIFF or to JPEG",
    ".dcm .dicom .ima .nii .gz .mha .mhd .nrrd": "save their slices as 16-bit PNG or TIFF",
    ".avi .m4v .mkv .mov .mp4 .mpeg .mpg .mts .webm .wmv": "save their frames as PNG",
    ".ai .eps .pdf .ps .svg .svgz .wmf .emf": "draw them as PNG",
    ".h5 .hdf .hdf5 .mat .npy .npz .exr .jxl .jxr .svs .ndpi .czi .nd2 .lif": "save them as TIFF",
    ".7z .rar .tar .tgz .zip": "unpack them",
}
HINTS = {suffix: hint for suffixes, hint in REMEDIES.items() for suffix in suffixes.split()}


def walk(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, sorted, without hidden ones; linked folders are followed.

    A link to a folder that the walk comes to anyway, or is in, is left out.
    """

    def visit(folder: Path, above: tuple[Path, ...], roots: tuple[Path, ...]) -> Iterator[Path]:
        here = Path(os.path.realpath(folder))
        if here in above:
            return
        if folder.is_symlink() or not roots:
            roots = (*roots, here)
        for path in sorted(folder.iterdir()):
            target = Path(os.path.realpath(path))
            if path.name.startswith("."):
                continue
            if not path.is_dir():
                yield path
            elif not path.is_symlink() or not any(map(target.is_relative_to, roots)):
                yield from visit(path, (*above, here), roots)

    return visit(folder, (), ())


def is_image(path: Path) -> bool:
    """Return True if a file is an image that can be read here, by its name; no hidden one is."""
    return not path.name.startswith(".") and path.suffix.lower() in _suffixes()


@cache
def _suffixes() -> set[str]:
    known = Image.registered_extensions().items()
    found = {suffix for suffix, kind in known if kind in Image.OPEN and kind not in UNDECODED}
    return found | set(HEIF if find_spec("pillow_heif") else ())


def nfc(name: str) -> str:
    """Return a name in its composed form: macOS and some archives decompose an umlaut."""
    return normalize("NFC", name)


def finder() -> Callable[[Path], Path]:
    """Return a function from a path to the file of that name, composed or decomposed, if any.

    A folder is listed once at most, and only if a file is not there as it is written.
    """

    @cache
    def names(folder: Path) -> dict[str, Path]:
        return {nfc(path.name): path for path in folder.iterdir()} if folder.is_dir() else {}

    def find(path: Path) -> Path:
        if path.name.isascii() or path.exists():
            return path
        return names(path.parent).get(nfc(path.name), path)

    return find


def unread_note(paths: Iterable[Path]) -> str:
    """Return which of these files are no images that can be read here, and what to do about it.

    Hidden files, text, and what systems leave in a folder are not mentioned.

    Returns:
        Such as "2 files left out: 2 .HEIC (to read them: pip install ...)"; "" if there are none.
    """
    unread = [p for p in paths if not p.name.startswith(".") and not is_image(p)]
    counts = Counter(p.suffix for p in unread if p.suffix.lower() not in COMPANIONS)
    if not counts:
        return ""
    kinds = []
    for suffix, count in sorted(counts.items()):
        hint = HINTS.get(suffix.lower(), "")
        kinds.append(f"{count} {suffix}" + (f" ({hint})" if hint else ""))
    total = counts.total()
    return f"{total} file{'s' * (total > 1)} left out: {', '.join(kinds)}"
