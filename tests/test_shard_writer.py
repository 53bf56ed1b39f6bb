import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from webdataset.tariterators import group_by_keys, tar_file_iterator

from fcn.data.datamodule import open_split
from fcn.data.files import Pair, SegmentationFiles
from fcn.data.reading import DataError, hold
from fcn.data.shard_writer import write_shards
from fcn.data.shards import shards
from tests.conftest import TinyVOC


@pytest.fixture
def files(tiny_voc: TinyVOC) -> SegmentationFiles:
    """All six images of the tiny set."""
    tiny_voc.listing("train").write_text("t0\nt1\nt2\nt3\nv0\nv1\n")
    return open_split(tiny_voc.config(), "train")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def untouched(folder: Path) -> dict[str, int]:
    """Changes when a file is written again, even with the same bytes."""
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def streamed(folder: Path) -> list[dict[str, bytes]]:
    """The samples as WebDataset's own library reads and groups them, from the first tar on."""
    samples: list[dict[str, bytes]] = []
    for tar in sorted(folder.glob("*.tar")):
        with tar.open("rb") as stream:
            members = [member | {"__url__": tar.name} for member in tar_file_iterator(stream)]
        samples += group_by_keys(members)
    return samples


def test_an_independent_reader_finds_the_original_bytes(
    tiny_voc: TinyVOC, files: SegmentationFiles, tmp_path: Path
) -> None:
    written = write_shards(files, tmp_path / "s", "all", shard_samples=4)
    samples = streamed(tmp_path / "s")
    assert [sample["__key__"] for sample in samples] == files.ids == written.ids
    for sample in samples:
        name = str(sample["__key__"])
        assert sample["jpg"] == tiny_voc.image(name).read_bytes()
        assert sample["png"] == tiny_voc.mask(name).read_bytes()


def test_real_images_go_in_as_they_are(voc_root: Path, tmp_path: Path) -> None:
    folder = voc_root / "VOCdevkit" / "VOC2012"
    ids = (folder / "ImageSets" / "Segmentation" / "val.txt").read_text().split()[:12]
    pairs = [
        Pair(i, folder / "JPEGImages" / f"{i}.jpg", folder / "SegmentationClass" / f"{i}.png")
        for i in ids
    ]
    names = [str(number) for number in range(21)]
    write_shards(SegmentationFiles(pairs, names, 255, "voc"), tmp_path, "val", shard_bytes=300_000)
    sizes = [path.stat().st_size for path in sorted(tmp_path.glob("*.tar"))]
    assert len(sizes) > 2
    assert all(300_000 <= size < 700_000 for size in sizes[:-1])
    for pair, sample in zip(pairs, streamed(tmp_path), strict=True):
        assert sample["__key__"] == pair.id
        assert (sample["jpg"], sample["png"]) == tuple(
            hold(source, "file").data for source in (pair.image, pair.mask)
        )


def test_shards_hold_as_much_as_they_are_told(files: SegmentationFiles, tmp_path: Path) -> None:
    def counts(name: str, **limits: int) -> list[int]:
        write_shards(files, tmp_path / name, "all", **limits)
        index = json.loads((tmp_path / name / "all.json").read_text())
        tars = sorted(path.name for path in (tmp_path / name).glob("*.tar"))
        assert tars == [shard["tar"] for shard in index["shards"]]
        return [len(shard["samples"]) for shard in index["shards"]]

    assert counts("default") == [6]
    assert counts("four", shard_samples=4) == [4, 2]
    assert counts("three", shard_samples=3) == [3, 3]
    assert counts("small", shard_bytes=1) == [1] * 6
    assert counts("both", shard_bytes=1, shard_samples=3) == [1] * 6


def test_progress_tells_each_sample(files: SegmentationFiles, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    write_shards(files, tmp_path, "all", shard_samples=4, progress=lambda *now: told.append(now))
    assert told == [(done, 6) for done in range(1, 7)]


class Stop(Exception):
    pass


def stop_at(count: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == count:
            raise Stop

    return progress


@pytest.mark.parametrize("at", range(1, 7))
def test_interrupted_writing_goes_on_where_it_was(
    files: SegmentationFiles, tmp_path: Path, at: int
) -> None:
    write_shards(files, tmp_path / "whole", "all", shard_samples=2)
    folder = tmp_path / "broken"
    with pytest.raises(Stop):
        write_shards(files, folder, "all", shard_samples=2, progress=stop_at(at))
    there = {name: inode for name, inode in untouched(folder).items() if name.endswith(".tar")}
    assert len(there) == (at - 1) // 2  # what was whole when it stopped
    assert not (folder / "all.json").exists()
    told: list[int] = []
    write_shards(files, folder, "all", shard_samples=2, progress=lambda done, _: told.append(done))
    assert contents(folder) == contents(tmp_path / "whole")
    assert told == [1, 2, 3, 4, 5, 6]
    assert there.items() <= untouched(folder).items()


def test_a_finished_set_is_left_alone_or_refused(
    tiny_voc: TinyVOC, files: SegmentationFiles, tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    write_shards(files, folder, "all", shard_samples=4)
    before, made = contents(folder), untouched(folder)
    write_shards(files, folder, "all", shard_samples=1)  # the same samples: nothing to do
    assert untouched(folder) == made

    fewer = SegmentationFiles(files.pairs[:4], files.classes, 255, "fewer")
    swapped = SegmentationFiles(files.pairs[::-1], files.classes, 255, "swapped")
    renamed = SegmentationFiles(files.pairs, ["a", "b", "c"], 255, "renamed")
    void = SegmentationFiles(files.pairs, files.classes, 254, "void")
    for other, words in (
        (fewer, "differs from fewer in its ids"),
        (swapped, "differs from swapped in its ids"),
        (renamed, "differs from renamed in its classes or void label"),
        (void, "differs from void in its classes or void label"),
    ):
        with pytest.raises(DataError, match=rf"all\.json: there already, and {words}; choose"):
            write_shards(other, folder, "all")
    mask = np.array(Image.open(tiny_voc.mask("v1")))
    mask[0, 0] = 2
    Image.fromarray(mask).save(tiny_voc.mask("v1"))
    with pytest.raises(DataError, match=r"all-000001\.tar: there already, and differs .* in v1;"):
        write_shards(files, folder, "all", shard_samples=4)
    assert contents(folder) == before


def test_what_lies_there_is_not_taken_on_trust(files: SegmentationFiles, tmp_path: Path) -> None:
    write_shards(files, folder := tmp_path / "s", "all", shard_samples=2)
    tar, index = folder / "all-000001.tar", folder / "all.json"
    good, text = tar.read_bytes(), index.read_text()

    index.write_text(text.replace('"t2.jpg", 512', '"t2.jpg", 513'))
    with pytest.raises(DataError, match=r"all\.json: there already, and differs"):
        write_shards(files, folder, "all")
    index.unlink()  # unfinished from here on
    for damaged, words in (
        (good[:700], r"damaged \(unexpected end of data\); remove it, and it is written again"),
        (good[:512] + b"\x00" + good[513:], r"there already, and differs from .* in t2;"),
        (b"not a tar", r"damaged \(.*\); remove it"),
        (b"", r"damaged \(.*\); remove it"),
        ((folder / "all-000000.tar").read_bytes(), "there already, and differs from .* in t2;"),
    ):
        tar.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"all-000001\.tar: {words}"):
            write_shards(files, folder, "all", shard_samples=2)
    with tarfile.open(tar, "w") as archive:
        link = tarfile.TarInfo("t2.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("t2.png"))
    with pytest.raises(DataError, match=r"differs from .* in t2;"):
        write_shards(files, folder, "all", shard_samples=2)
    tar.unlink()
    write_shards(files, folder, "all", shard_samples=2)
    assert (tar.read_bytes(), index.read_text()) == (good, text)

    (folder / "all-000003.tar").write_bytes(good)
    with pytest.raises(DataError, match=r"all-000003\.tar: there already, and differs"):
        write_shards(files, folder, "all", shard_samples=2)
    (folder / "all-000003.tar").unlink()
    tar.unlink()
    with pytest.raises(DataError, match=r"all-000001\.tar: missing; remove .*all\.json, and"):
        write_shards(files, folder, "all", shard_samples=2)


def test_a_sample_that_cannot_be_used_stops_the_writing(
    tiny_voc: TinyVOC, files: SegmentationFiles, tmp_path: Path
) -> None:
    good = tiny_voc.mask("t3").read_bytes()
    Image.new("L", (64, 48), 37).save(tiny_voc.mask("t3"))
    with pytest.raises(DataError, match=r"t3\.png: label 37 is out of range"):
        write_shards(files, tmp_path / "s", "all", shard_samples=2)
    assert [path.suffix for path in sorted((tmp_path / "s").iterdir())] == [".tar", ".part"]
    tiny_voc.mask("t3").write_bytes(good)
    write_shards(files, tmp_path / "s", "all", shard_samples=2)
    assert sorted(os.listdir(tmp_path / "s")) == [
        *(f"all-00000{number}.tar" for number in range(3)),
        "all.json",
    ]


def test_sbd_masks_become_png_without_a_palette(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    labels = np.zeros((50, 40), np.uint8)
    labels[5, 6], labels[7, 8] = 2, 255
    savemat(tmp_path / "t0.mat", {"GTcls": {"Segmentation": labels}})
    pair = Pair("t0", tiny_voc.image("t0"), tmp_path / "t0.mat")
    files = SegmentationFiles([pair], tiny_voc.classes, 255, "sbd")
    written = write_shards(files, tmp_path / "s", "train")
    assert torch.equal(written[0][1], torch.from_numpy(labels))
    with written.samples[0].mask.open("rb") as stream, Image.open(stream) as mask:
        assert (mask.format, mask.mode) == ("PNG", "L")
    write_shards(files, tmp_path / "s", "train")  # the same again, from the .mat
    savemat(tmp_path / "t0.mat", {"GTcls": {"Segmentation": labels + 3}})
    with pytest.raises(DataError, match=r"t0\.mat \(as PNG\): label"):
        write_shards(files, tmp_path / "other", "train")


def test_any_name_and_kind_of_image_is_one_sample_to_any_reader(tmp_path: Path) -> None:
    """Dots, which end WebDataset's keys; folders; letters and lengths beyond a plain tar header."""
    ids = ["train/a.b", "train/a%2Eb", "..up", "train/ö ü", "x" * 150, "PNG", "JPEG"]
    pairs = []
    for number, name in enumerate(ids):
        ending = {"PNG": "PNG", "JPEG": "jpeg"}.get(name, "jpg")
        image, mask = tmp_path / f"{number}.{ending}", tmp_path / f"{number}_mask.png"
        Image.new("RGB", (5 + number, 4), (number, 0, 0)).save(image)
        Image.new("L", (5 + number, 4), number % 2).save(mask)
        pairs.append(Pair(name, image, mask))
    files = SegmentationFiles(pairs, ["a", "b"], 255, "odd")
    written = write_shards(files, tmp_path / "s", "all")
    assert written.ids == ids
    samples = streamed(tmp_path / "s")
    assert len(samples) == len({sample["__key__"] for sample in samples}) == len(ids)
    for index, (pair, sample) in enumerate(zip(pairs, samples, strict=True)):
        ending = {"PNG": "image.png", "JPEG": "jpeg"}.get(pair.id, "jpg")
        assert set(sample) >= {ending, "png"}
        assert sample[ending] == hold(pair.image, "image").data
        assert sample["png"] == hold(pair.mask, "mask").data
        assert ".." not in str(sample["__key__"])
        for ours, theirs in zip(written[index], files[index], strict=True):
            assert torch.equal(ours, theirs)


def test_shards_can_be_written_anew_from_shards(files: SegmentationFiles, tmp_path: Path) -> None:
    one = write_shards(files, tmp_path / "one", "all")
    two = write_shards(one, tmp_path / "two", "all", shard_samples=1)
    assert streamed_bytes(tmp_path / "two") == streamed_bytes(tmp_path / "one")
    assert two.fingerprint() == shards(str(tmp_path / "one"), "all").fingerprint()


def streamed_bytes(folder: Path) -> list[tuple[bytes, bytes, bytes]]:
    return [(s["__key__"], s["jpg"], s["png"]) for s in streamed(folder)]
