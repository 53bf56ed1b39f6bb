"""Shards are to be what the files they were written from are, wherever they lie."""

import json
import pickle
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from fcn.config import BackboneConfig, DataConfig, RecipeConfig, TrainConfig, TrainerConfig
from fcn.data import ranges
from fcn.data.datamodule import TrainingBatches, TrainingSamples, evaluation_loader, open_split
from fcn.data.files import DataError, SegmentationFiles
from fcn.data.shard_writer import write_shards
from fcn.data.shards import Shards, shards
from fcn.data.transforms import train_transform
from fcn.inference.evaluation import evaluate
from fcn.models.fcn import FCN
from fcn.training.run import train
from tests.conftest import TinyVOC
from tests.range_server import RangeServer

WHOLE = train_transform(None, [1.0, 1.0], False, 0.0)
CUT = train_transform(32, [0.5, 2.0], True, 0.5)


@pytest.fixture
def root(tiny_voc: TinyVOC) -> Path:
    """The tiny set in shards: three training samples in one tar, one in the next."""
    for split in ("train", "val"):
        files = open_split(tiny_voc.config(), split)
        write_shards(files, tiny_voc.root / "shards", split, shard_samples=3)
    return tiny_voc.root / "shards"


def part_of_voc(voc_root: Path, split: str, count: int) -> SegmentationFiles:
    """The first images of real VOC."""
    config = DataConfig(name="voc2012", root=str(voc_root), folder="VOCdevkit/VOC2012")
    files = open_split(config, split)
    return SegmentationFiles(files.pairs[:count], files.classes, 255, f"voc {split}")


def batches(
    files: SegmentationFiles, batch: int, steps: int, workers: int = 0, start: int = 0, **more: Any
) -> list[Tensor]:
    """Images and masks of a run's batches from `start` on, one after the other."""
    order = TrainingBatches(len(files), batch, steps, 7)
    order.start = start
    loader = DataLoader(
        TrainingSamples(files, CUT), batch_sampler=order, num_workers=workers, **more
    )
    return [part for batch in loader for part in batch]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# As meant, whatever the machine.
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_pass_reads_every_image_once_over_ranks_and_workers(
    root: Path, world: int, workers: int
) -> None:
    split = shards(str(root), "train")
    named = {split[i][0].numpy().tobytes(): split.ids[i] for i in range(len(split))}
    steps = 8 // world + 1
    ranks = [
        DataLoader(
            TrainingSamples(split, WHOLE),
            batch_sampler=TrainingBatches(len(split), 1, steps, 7, rank, world),
            num_workers=workers,
        )
        for rank in range(world)
    ]
    drawn = [
        named[image[0].numpy().tobytes()] for step in zip(*ranks, strict=True) for image, _ in step
    ]
    assert len(drawn) >= 8
    for first in (0, 4):
        assert sorted(drawn[first : first + 4]) == ["t0", "t1", "t2", "t3"]
    judged = Counter(
        named[image.numpy().tobytes()]
        for rank in range(world)
        for images, targets in evaluation_loader(split, 3, workers, rank, world)
        for image, target in zip(images, targets, strict=True)
        if (target != 255).any()  # those that fill up a rank are all void
    )
    assert judged == dict.fromkeys(split.ids, 1)


def test_batches_are_those_of_the_files(tiny_voc: TinyVOC, root: Path) -> None:
    files, split = open_split(tiny_voc.config(), "train"), shards(str(root), "train")
    assert (split.ids, split.classes, split.sizes()) == (files.ids, files.classes, files.sizes())
    assert split.fingerprint() == files.fingerprint()
    wanted = batches(files, 3, 6)
    assert same(batches(split, 3, 6), wanted)
    assert same(batches(split, 3, 6, workers=2), wanted)
    assert same(batches(split, 3, 6, workers=1, start=4), wanted[2 * 4 :])


def test_real_batches_and_numbers_are_those_of_the_files(voc_root: Path, tmp_path: Path) -> None:
    files = part_of_voc(voc_root, "val", 9)
    split = write_shards(files, tmp_path, "val", shard_bytes=500_000)
    assert len(list(tmp_path.glob("val-*.tar"))) > 1
    assert same(batches(split, 4, 5, workers=2), batches(files, 4, 5))
    assert judged(split) == judged(files)


def judged(files: SegmentationFiles) -> list[list[int]]:
    """The confusion matrix of a small fixed model."""
    torch.manual_seed(1)
    model = FCN(stride=8, num_classes=len(files.classes), backbone="mini", width=4, head_width=8)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # or it would say background everywhere
    loader = evaluation_loader(files, 3)
    result = evaluate(model, loader, len(files.classes), device=torch.device("cpu"), bf16=False)
    confusion = result.scores.confusion
    assert (confusion.sum(0) > 0).sum() > 1
    return confusion.tolist()


def test_a_run_is_the_same_from_files_and_from_a_server(tiny_voc: TinyVOC, root: Path) -> None:
    def run(data: DataConfig, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        cfg = TrainConfig(
            data=data,
            backbone=BackboneConfig(name="mini", width=4, head_width=8),
            recipe=RecipeConfig(
                name="test", optimizer="adamw", lr=1e-3, max_steps=4, batch_size=2, crop=32
            ),
            trainer=TrainerConfig(
                max_steps=4, accelerator="cpu", enable_progress_bar=False, precision="32-true"
            ),
        )
        done = train(cfg, tiny_voc.root / name, Console(quiet=True))
        assert done is not None
        weights = torch.load(done.best, weights_only=True)["state_dict"]
        return done.metrics, weights

    metrics, weights = run(tiny_voc.config(), "files")
    with RangeServer(root) as server:
        data = DataConfig(name="tiny", layout="shards", root=server.address, num_workers=0)
        their_metrics, their_weights = run(data, "far")
    assert their_metrics == metrics
    assert same(list(their_weights.values()), list(weights.values()))


@pytest.mark.filterwarnings("ignore:.*is multi-threaded:DeprecationWarning")  # by the server
@pytest.mark.parametrize(
    ("start", "workers"), [("fork", 2), pytest.param("spawn", 1, marks=pytest.mark.slow)]
)
def test_a_server_gives_the_same_to_every_worker(root: Path, start: str, workers: int) -> None:
    local = shards(str(root), "train")
    with RangeServer(root) as server:
        split = shards(server.address, "train")
        assert same(batches(pickle.loads(pickle.dumps(split)), 2, 4), batches(local, 2, 4))
        asked, connected = len(server.requests), server.connections
        assert asked == 2 + 8  # the index, one look at a tar, then one request a sample
        there = batches(split, 2, 4, workers, multiprocessing_context=start)
        assert same(there, batches(local, 2, 4))
        assert len(server.requests) == asked + 8
        assert server.connections == connected + workers  # none is shared, each is kept


def test_a_server_without_ranges_is_refused_at_once(root: Path) -> None:
    with (
        RangeServer(root, ranges=False) as server,
        pytest.raises(DataError, match=r"/train-000000\.tar: this server gives whole files only"),
    ):
        shards(server.address, "train")


def test_a_damaged_tar_is_said_by_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "BACKOFF", 0)
    split, tar = shards(str(root), "train"), root / "train-000000.tar"
    sample, whole = split.samples[1], tar.read_bytes()
    with RangeServer(root) as server:
        far = shards(server.address, "train")
        for part in (sample.image, sample.mask):
            damaged = bytearray(whole)
            damaged[part.start + part.length // 2] ^= 1  # the smallest damage there is
            tar.write_bytes(damaged)
            for each, place in ((split, str(root)), (far, server.address)):
                with pytest.raises(DataError) as caught:
                    each[1]
                assert str(caught.value).startswith(f"{place}/train-000000.tar: {part.name}: damag")
                assert each[0][0].shape == (3, 50, 40)  # the others are as they were
        tar.write_bytes(whole[:-1])
        with pytest.raises(DataError, match=r"the index says 20480: cut short, or of another"):
            far[0]
    with pytest.raises(
        DataError, match=r"train-000000\.tar: 20479 bytes, but the index says 20480"
    ):
        split[0]
    with pytest.raises(DataError, match=r"train-000000\.tar: 20479 bytes, but"):
        shards(str(root), "train")
    tar.unlink()
    with pytest.raises(DataError, match=r"train-000000\.tar: not found"):
        shards(str(root), "train")


def claim(*keys: str | int, value: object) -> Any:
    """A damage to an index: what lies at `keys` becomes `value`."""

    def damage(index: Any) -> None:
        for key in keys[:-1]:
            index = index[key]
        index[keys[-1]] = value

    return damage


SAMPLE = ("shards", 0, "samples", 0)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (claim("format", value="fcn-shards-9"), "format 'fcn-shards-9', not 'fcn-shards-1'"),
        (claim("classes", value=["one"]), "1 classes"),
        (claim("ignore_index", value=256), "ignore_index is 256"),
        (claim("shards", value=7), "not iterable"),
        (claim("shards", value=[{}]), "'tar' is missing"),
        (claim("shards", 0, "tar", value="../../etc/passwd"), "'../../etc/passwd' is not the name"),
        (claim("shards", 0, "tar", value="/etc/x.tar"), "'/etc/x.tar' is not the name"),
        (claim("shards", 0, "tar", value="http://else.where/x.tar"), "is not the name of a file"),
        (claim("shards", 0, "tar", value=".."), "is not the name of a file"),
        (claim("shards", 0, "tar", value=None), "None is not the name of a file"),
        (claim("shards", 0, "bytes", value=-1), "bytes is -1"),
        (claim("shards", 0, "bytes", value=10**30), "bytes is 1000"),
        (claim(*SAMPLE, "id", value=5), "a name is not text"),
        (claim(*SAMPLE, "size", value=[0, 5]), "size is 0"),
        (claim(*SAMPLE, "size", value=[10**9, 5]), "size is 1000000000"),
        (claim(*SAMPLE, "size", value=[5]), "unpack"),
        (claim(*SAMPLE, "image", 1, value=-512), "start is -512"),
        (claim(*SAMPLE, "image", 1, value=True), "start is True"),
        (claim(*SAMPLE, "image", 1, value=512.5), "start is 512.5"),
        (claim(*SAMPLE, "image", 1, value=10**15), "start is 1000000000000000"),
        (claim(*SAMPLE, "image", 2, value=-1), "length is -1"),
        (claim(*SAMPLE, "image", 2, value=0), "length is 0"),
        (claim(*SAMPLE, "mask", 1, value=0), "start is 0"),
        (claim(*SAMPLE, "mask", 2, value=10**12), "length is 1000000000000"),
        (claim(*SAMPLE, "mask", 3, value=2**32), "crc32 is 4294967296"),
        (claim(*SAMPLE, "mask", 0, value="t0.mat"), "mask t0.mat is no PNG"),
        (claim(*SAMPLE, "mask", value=[]), "arguments"),
    ],
)
def test_an_index_that_claims_what_cannot_be_is_refused(
    root: Path, damage: Any, words: str
) -> None:
    path = root / "train.json"
    index = json.loads(path.read_text())
    damage(index)
    path.write_text(json.dumps(index))
    with pytest.raises(DataError) as caught:
        shards(str(root), "train")
    assert str(caught.value).startswith(f"{path}: not an index of shards, or damaged (")
    assert words in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_index_is_refused(root: Path, text: bytes) -> None:
    (root / "train.json").write_bytes(text)
    with pytest.raises(DataError, match=r"train\.json: not an index of shards, or damaged"):
        shards(str(root), "train")


def test_an_index_that_is_wrong_about_its_images_is_refused(root: Path) -> None:
    path = root / "train.json"
    index = json.loads(path.read_text())
    index["shards"][0]["samples"][0]["size"] = [50, 40]
    path.write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"t0\.jpg: is 40 x 50, but the index says 50 x 40"):
        shards(str(root), "train")[0]
    index["shards"][0]["samples"][0]["id"] = "t1"
    path.write_text(json.dumps(index))
    with pytest.raises(DataError, match="t1 is listed twice"):
        shards(str(root), "train")


def test_settings_that_do_not_fit_the_set(root: Path) -> None:
    def opened(**settings: Any) -> Shards:
        split = open_split(DataConfig("x", layout="shards", root=str(root), **settings), "train")
        assert isinstance(split, Shards)
        return split

    assert opened().classes == list(TinyVOC.classes)
    assert opened(classes=["a", "b", "c"]).classes == ["a", "b", "c"]
    with pytest.raises(DataError, match=r"data\.classes names 2, but .*train\.json has 3 classes"):
        opened(classes=["a", "b"])
    with pytest.raises(DataError, match=r"data\.ignore_index=0, but the void label .* is 255"):
        opened(ignore_index=0)
    with pytest.raises(DataError, match=r"test\.json: no such index; .*splits there: train, val"):
        shards(str(root), "test")
    for split in ("../train", "", "a/b"):
        with pytest.raises(DataError, match=r"data\.split: .* cannot name a split"):
            shards(str(root), split)
    with (
        RangeServer(root) as server,
        pytest.raises(DataError, match=r"test\.json: the server .*404"),
    ):
        shards(server.address, "test")


def test_shards_may_be_moved(root: Path, tmp_path: Path) -> None:
    before = shards(str(root), "train")[3]
    shutil.move(root, tmp_path / "else where")
    assert same(list(shards(str(tmp_path / "else where"), "train")[3]), list(before))
