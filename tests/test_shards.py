"""Shards: the same samples as from files, by any reader, from folders and servers."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from scipy.io import savemat
from torch import Tensor
from torch.utils.data import DataLoader
from webdataset.tariterators import group_by_keys, tar_file_iterator

from fcn.config import DataConfig
from fcn.data import shards
from fcn.data.dataset import Pair, SegmentationDataset
from fcn.data.layouts import open_split
from fcn.data.loaders import TrainingBatches, TrainingSamples, evaluation_loader
from fcn.data.shards import open_shards, write_shards
from fcn.data.transforms import TrainTransform
from fcn.dataset_info import INFO_KEYS, DatasetInfo
from fcn.errors import DataError
from tests.conftest import TinyVOC
from tests.file_server import FileServer, serving

QUIET = Console(quiet=True)
SHARD = 10_000  # bytes, which three samples of the tiny set exceed, but not two


@pytest.fixture
def root(tiny_voc: TinyVOC, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny set in shards: three training samples in one tar, one in the next."""
    monkeypatch.setattr(shards, "SHARD_BYTES", SHARD)
    for split in ("train", "val"):
        dataset = open_split(tiny_voc.config(), split)
        write_shards(dataset, tiny_voc.root / "shards", split, QUIET)
    return tiny_voc.root / "shards"


@pytest.fixture
def server(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(shards, "BACKOFF", 0)
    with serving(root) as running:
        yield running


def batches(dataset: SegmentationDataset, workers: int = 0, start: int = 0) -> list[Tensor]:
    """Images and masks of a run's batches, one after the other."""
    order = TrainingBatches(len(dataset), 3, 6, 7, start=start)
    samples = TrainingSamples(dataset, TrainTransform(32, [0.5, 2.0], True, 0.5))
    loader = DataLoader(samples, batch_sampler=order, num_workers=workers)
    return [part for batch in loader for part in batch]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def streamed(folder: Path) -> list[dict[str, Any]]:
    """The samples as WebDataset's own library reads and groups them."""
    samples: list[dict[str, Any]] = []
    for tar in sorted(folder.glob("*.tar")):
        with tar.open("rb") as stream:
            members = [member | {"__url__": tar.name} for member in tar_file_iterator(stream)]
        samples += group_by_keys(members)
    return samples


def test_shards_are_equal_to_the_files(tiny_voc: TinyVOC, root: Path) -> None:
    files, split = open_split(tiny_voc.config(), "train"), open_shards(str(root), "train")
    assert len(list(root.glob("train-*.tar"))) == 2
    assert (split.ids, split.classes, split.sizes()) == (files.ids, files.classes, files.sizes())
    assert split.fingerprint() == files.fingerprint()
    assert split.has_masks()
    wanted = batches(files)
    assert same(batches(split), wanted)
    assert same(batches(split, workers=2), wanted)
    assert same(batches(split, start=4), wanted[2 * 4 :])
    shapes = [image.shape for image, _ in evaluation_loader(split, 2)]
    assert shapes == [image.shape for image, _ in evaluation_loader(files, 2)]


def test_the_index_has_this_format(tiny_voc: TinyVOC, root: Path) -> None:
    index = json.loads((root / "train.json").read_text())
    assert index.keys() == {"format", "shards", *INFO_KEYS}
    assert index["format"] == "fcn-shards-1"
    assert [shard["tar"] for shard in index["shards"]] == ["train-000000.tar", "train-000001.tar"]
    assert index["shards"][0]["bytes"] == (root / "train-000000.tar").stat().st_size
    sample = index["shards"][0]["samples"][0]
    length = tiny_voc.image("t0").stat().st_size
    assert sample["image"][:3] == ["t0.jpg", 512, length]  # after its header of 512 bytes
    assert (sample["id"], sample["size"], sample["mask"][0]) == ("t0", [40, 50], "t0.png")


def test_any_name_and_kind_of_image_is_one_sample_to_any_reader(tmp_path: Path) -> None:
    """Dots, which end WebDataset's keys; folders; letters and lengths beyond a plain tar header.

    Images and masks are the files' own bytes; only SBD's masks become PNG.
    """
    ids = ["train/a.b", "train/a%2Eb", "train/ö ü", "x" * 150, "PNG", "JPEG", "sbd"]
    pairs = []
    for number, name in enumerate(ids):
        ending = {"PNG": "PNG", "JPEG": "jpeg"}.get(name, "jpg")
        image, mask = tmp_path / f"{number}.{ending}", tmp_path / f"{number}_mask.png"
        Image.new("RGB", (5 + number, 4), (number, 0, 0)).save(image)
        labels = np.full((4, 5 + number), number % 2, np.uint8)
        if name == "sbd":
            savemat(mask := mask.with_suffix(".mat"), {"GTcls": {"Segmentation": labels}})
        else:
            Image.fromarray(labels).save(mask)
        pairs.append(Pair(name, image, mask))
    files = SegmentationDataset(pairs, DatasetInfo(["a", "b"]), "odd")
    write_shards(files, tmp_path / "s", "all", QUIET)
    written = open_shards(str(tmp_path / "s"), "all")
    assert written.ids == ids
    samples = streamed(tmp_path / "s")
    assert len({sample["__key__"] for sample in samples}) == len(ids)
    for index, (pair, sample) in enumerate(zip(pairs, samples, strict=True)):
        ending = {"PNG": "image.png", "JPEG": "jpeg"}.get(pair.id, "jpg")
        assert sample[ending] == pair.image.read_bytes()
        if pair.id == "sbd":
            assert sample["png"].startswith(b"\x89PNG")
        else:
            assert sample["png"] == pair.mask.read_bytes()
        assert same(list(written[index]), list(files[index]))


def test_shards_can_be_written_from_shards(root: Path, tmp_path: Path) -> None:
    write_shards(open_shards(str(root), "train"), tmp_path / "s", "train", QUIET)
    for name in ("train-000000.tar", "train-000001.tar", "train.json"):
        assert (tmp_path / "s" / name).read_bytes() == (root / name).read_bytes()


def test_only_usable_samples_are_written_and_only_to_a_new_set(
    tiny_voc: TinyVOC, root: Path, tmp_path: Path
) -> None:
    dataset = open_split(tiny_voc.config(), "train")
    with pytest.raises(DataError, match=r"/shards: holds shards of train"):
        write_shards(dataset, root, "train", QUIET)
    Image.new("L", (64, 48), 37).save(tiny_voc.mask("t3"))
    with pytest.raises(DataError, match=r"t3\.png: label 37"):
        write_shards(dataset, tmp_path / "s", "train", QUIET)
    assert not (tmp_path / "s" / "train.json").exists()


@pytest.mark.filterwarnings("ignore:.*is multi-threaded:DeprecationWarning")  # by the server
def test_a_server_gives_the_same_as_a_folder(root: Path, server: FileServer) -> None:
    local, far = open_shards(str(root), "train"), open_shards(server.url, "train")
    assert same(batches(pickle.loads(pickle.dumps(far))), batches(local))
    assert same(batches(far, workers=2), batches(local))
    server.busy = 3
    assert same(list(far[1]), list(local[1]))


def test_what_a_server_cannot_give_is_named(
    root: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=rf"{server.url}/test\.json: not found"):
        open_shards(server.url, "test")
    split = open_shards(server.url, "train")
    server.ranges = False
    with pytest.raises(DataError, match=r"train-000000\.tar: .* range requests"):
        split[0]
    server.ranges, server.busy = True, 100
    with pytest.raises(DataError, match=r"train-000000\.tar: unreadable .*503"):
        split[0]
    with pytest.raises(DataError, match=r"nope://x/train\.json: cannot be read"):
        open_shards("nope://x", "train")


def test_a_damaged_tar_is_named(root: Path) -> None:
    split, tar = open_shards(str(root), "train"), root / "train-000000.tar"
    whole = tar.read_bytes()
    member = split.pairs[1].mask
    assert isinstance(member, shards.Member)
    damaged = bytearray(whole)
    damaged[member.start + member.length // 2] ^= 1
    tar.write_bytes(damaged)
    with pytest.raises(DataError, match=rf"train-000000\.tar: {member.name}: damaged"):
        split[1]
    assert split[0][0].shape == (3, 50, 40)  # the others are as they were
    tar.write_bytes(whole[:600])
    with pytest.raises(DataError, match=r"train-000000\.tar: 88 bytes instead of .*cut short"):
        split[0]
    tar.unlink()
    with pytest.raises(DataError, match=r"train-000000\.tar: not found"):
        split[0]


def test_a_damaged_index_is_named(root: Path) -> None:
    for text in ("{", "[]", '{"format": "fcn-shards-9"}'):
        (root / "train.json").write_text(text)
        with pytest.raises(DataError, match=r"train\.json: not an index of shards, or damaged"):
            open_shards(str(root), "train")


def test_settings_must_fit_the_set(tiny_voc: TinyVOC, root: Path) -> None:
    def opened(**settings: Any) -> SegmentationDataset:
        return open_split(DataConfig("x", layout="shards", root=str(root), **settings), "train")

    assert opened(classes=list(TinyVOC.classes)).classes == list(TinyVOC.classes)
    for classes in (["a", "b"], ["background", "dog", "cat"]):
        with pytest.raises(
            DataError, match=r"train\.json.*labels .* are named background, cat, dog"
        ):
            opened(classes=classes)
    with pytest.raises(DataError, match=r"data\.ignore_index=0: .* has 255"):
        opened(ignore_index=0)
