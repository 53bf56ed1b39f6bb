"""No file hurts: whatever is damaged in one, it is read, or refused in one line that names it.

Each parser gets hundreds of damaged files here, and thousands with `-m slow`, where a child process
with little memory takes them, so that what ends the interpreter is caught too. What fails is said
by parser and seed, which make the same file again: `python -m tests.test_fuzz PARSER SEED SEED+1`.
"""

import faulthandler
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from scipy.io import savemat

import fcn
from fcn import app
from fcn.checks.training import check
from fcn.config import HIDDEN, REPOSITORY, DataConfig, ModelConfig, UserError
from fcn.data.datamodule import open_split
from fcn.data.download import unpack
from fcn.data.reading import image_size, read_image, read_mask
from fcn.data.shard_writer import write_shards
from fcn.data.shards import shards
from fcn.inference import checkpoint, jobs
from fcn.inference.checkpoint import write_safetensors
from fcn.inference.evaluation import read_per_image
from fcn.inference.runs import open_runs
from fcn.models.caffe_nets import import_fcn
from fcn.models.caffemodel import read_caffemodel
from fcn.models.fcn import FCN
from fcn.recorded import read_overrides
from fcn.training.initialise import initialise
from tests import mutations
from tests.caffe_files import authors_net, caffemodel, legacy_blob, v1_caffemodel
from tests.conftest import TinyVOC
from tests.mutations import Mutator, Rng, damage, hurt, pick
from tests.test_report import make_run

DEEP = 20  # times as many files in the slow test as in the fast one
SECONDS = 10  # of the processor, for any one file
MEMORY = 600_000_000  # bytes, for any one file: twice those of the largest image to be trained on
ADDRESSES = 2**31  # bytes of them, all told, for the child: claims that nothing is written to
LONGEST = 3000  # characters of a message


@dataclass(frozen=True)
class Target:
    """A file that is damaged: where it lies, sound ones to start from, and how to damage them."""

    path: Path
    seeds: list[bytes]
    mutators: tuple[Mutator, ...] = (damage,)


@dataclass(frozen=True)
class Parser:
    """prepare: lays out files in a folder. read: takes the folder, and the damaged file."""

    prepare: Callable[[Path], list[Target]]
    read: Callable[[Path, Path], object]
    fast: int = 200  # damaged files of the fast test
    named: bool = True  # a refusal names the file or its folder; else something that it says


def net() -> FCN:
    torch.manual_seed(0)
    return FCN(stride=32, num_classes=3, backbone="vgg11", width=4, head_width=4)


ABOUT: dict[str, Any] = {
    "classes": ["background", "cat", "dog"],
    "precision": "32-true",
    "data": {"name": "tiny"},
}


def saved(content: Any, **how: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **how)
    return stream.getvalue()


def lightning() -> dict[str, Any]:
    model = net()
    return {
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "hyper_parameters": {"about": ABOUT | {"model": model.arguments}},
        "callbacks": {"History": {"loss": [[1, 2.0], [2, 1.0]], "mean_iou": [[2, 0.5]]}},
        "epoch": 0,
    }


def hurt_ckpt(rng: Rng, seeds: Any) -> bytes:
    return saved(hurt(rng, lightning()))


def hurt_state(rng: Rng, seeds: Any) -> bytes:
    return saved(hurt(rng, vgg_state()), _use_new_zipfile_serialization=rng.random() < 0.5)


def vgg_state() -> dict[str, Any]:
    from fcn.models.surgery import torchvision_names

    model = net()
    names, state = torchvision_names(model), model.state_dict()
    return {theirs: state[ours] for ours, theirs in names.items()}


def safetensors(folder: Path) -> list[Target]:
    write_safetensors(path := folder / "model.safetensors", net(), ABOUT)
    mutators = (damage, mutations.damage_safetensors, mutations.damage_safetensors)
    return [Target(path, [path.read_bytes()], mutators)]


def ckpt(folder: Path) -> list[Target]:
    mutators = (damage, mutations.damage_zip, hurt_ckpt)
    old = saved(lightning(), _use_new_zipfile_serialization=False)
    return [
        Target(folder / "last.ckpt", [saved(lightning())], mutators),
        Target(folder / "old.ckpt", [old]),
    ]


def read_ckpt(folder: Path, path: Path) -> None:
    refusals = []
    for read in (fcn.load, checkpoint.history):
        try:
            read(path)
        except UserError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


def backbone(folder: Path) -> list[Target]:
    state = vgg_state()
    write_safetensors(folder / "b.safetensors", net(), ABOUT)
    new, old = (saved(state, _use_new_zipfile_serialization=new) for new in (True, False))
    return [
        Target(folder / "new.pth", [new], (damage, mutations.damage_zip, hurt_state)),
        Target(folder / "old.pth", [old], (damage, hurt_state)),
        Target(
            folder / "b.safetensors",
            [(folder / "b.safetensors").read_bytes()],
            (damage, mutations.damage_safetensors),
        ),
    ]


def read_backbone(folder: Path, path: Path) -> None:
    initialise(net(), ModelConfig(), str(path), ABOUT["classes"])


def caffe(folder: Path) -> list[Target]:
    layers = authors_net("fcn32s", width=1, head=2, classes=3).layers

    def rebuilt(rng: Rng, seeds: Any) -> bytes:
        """Sound files of odd layers: names, kinds, shapes and numbers of blobs."""
        tree = {
            name: [kind, [list(b.shape) for b in blobs]] for name, (kind, blobs) in layers.items()
        }
        odd = {}
        hurt_tree = hurt(rng, tree)
        for name, entry in hurt_tree.items() if isinstance(hurt_tree, dict) else ():
            try:
                kind, shapes = entry
                arrays = [np.zeros([int(n) for n in shape]) for shape in shapes]
                assert sum(array.size for array in arrays) < 10**6
                odd[str(name).replace("\ud800", "")] = (str(kind).replace("\ud800", ""), arrays)
            except Exception:  # no blob could have such a shape
                continue
        return caffemodel(odd)

    seeds = [caffemodel(layers), caffemodel(layers, legacy_blob), v1_caffemodel(layers)]
    return [Target(folder / "net.caffemodel", seeds, (damage, damage, rebuilt))]


def read_caffe(folder: Path, path: Path) -> None:
    import_fcn(read_caffemodel(path), "fcn32s", name=str(path))


FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "PPM", "ICO", "JPEG2000", "AVIF", "TGA")
FORMATS += ("PCX", "SGI", "DDS", "ICNS", "IM", "MPO", "QOI", "SPIDER", "MSP", "XBM", "EPS")


def pictures(folder: Path) -> list[Target]:
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (33, 40, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "description"
    seeds = []
    for kind in FORMATS:
        mode = {"SPIDER": "F", "MSP": "1", "XBM": "1"}.get(kind, "RGB")
        how: dict[str, Any] = {"exif": exif} if kind in ("JPEG", "PNG", "TIFF", "WEBP") else {}
        photo.convert(mode).save(stream := io.BytesIO(), kind, **how)
        seeds.append(stream.getvalue())
    for mode, kind, how in (
        ("P", "PNG", {"transparency": b"\0\x80"}),
        ("RGBA", "PNG", {}),
        ("I;16", "PNG", {}),
        ("1", "PNG", {}),
        ("CMYK", "JPEG", {}),
        ("L", "JPEG", {"progressive": True}),
        *(("RGB", "TIFF", {"compression": c}) for c in ("tiff_lzw", "jpeg", "tiff_deflate")),
    ):
        photo.convert(mode).save(stream := io.BytesIO(), kind, **how)
        seeds.append(stream.getvalue())
    frames = [photo.rotate(angle) for angle in (0, 90)]
    frames[0].save(stream := io.BytesIO(), "GIF", save_all=True, append_images=frames)
    return [
        Target(folder / "photo.jpg", [*seeds, stream.getvalue()], (damage, mutations.damage_png))
    ]


def read_picture(folder: Path, path: Path) -> None:
    image = read_image(path)
    assert image.ndim == 3
    assert image.shape[0] == 3
    image_size(path)


def masks(folder: Path) -> list[Target]:
    labels = (np.arange(33 * 40).reshape(33, 40) // 300).astype(np.uint8)
    seeds = []
    for mode in ("L", "P"):
        mask = Image.fromarray(labels)
        if mode == "P":
            mask.putpalette(list(range(60)))
        for kind in ("PNG", "TIFF", "BMP", "GIF"):
            mask.save(stream := io.BytesIO(), kind)
            seeds.append(stream.getvalue())
    return [Target(folder / "mask.png", seeds, (damage, mutations.damage_png))]


def mats(folder: Path) -> list[Target]:
    labels = (np.arange(33 * 40).reshape(33, 40) // 300).astype(np.uint8)
    seeds = []
    for packed in (True, False):
        content = {"Segmentation": labels, "CategoriesPresent": np.array([[1, 2]], np.uint8)}
        content["Boundaries"] = np.array([[labels > 1]], object)
        savemat(folder / "s.mat", {"other": 1, "GTcls": content}, do_compression=packed)
        seeds.append((folder / "s.mat").read_bytes())

    def inside(rng: Rng, given: Any) -> bytes:
        """Damaged, then packed."""
        data = damage(rng, [given[1][128:]])
        packed = zlib.compress(data)
        return (
            given[1][:128] + (15).to_bytes(4, "little") + len(packed).to_bytes(4, "little") + packed
        )

    return [Target(folder / "mask.mat", seeds, (damage, inside))]


def read_labels(folder: Path, path: Path) -> None:
    mask = read_mask(path, 5, 255)
    assert mask.dtype == torch.uint8
    assert mask.ndim == 2


def lists(folder: Path) -> list[Target]:
    tiny = TinyVOC(folder)
    path = tiny.listing("train")
    return [Target(path, [path.read_bytes()], (damage, mutations.damage_lines))]


def read_split(folder: Path, path: Path) -> None:
    config = DataConfig(name="tiny", root=str(folder), folder="tiny", classes=list(TinyVOC.classes))
    files = open_split(config, "train")
    for pair in files.pairs:
        for part in (pair.image, pair.mask):
            assert Path(os.path.normpath(str(part))).is_relative_to(folder)
        assert "/" not in pair.id or ".." not in pair.id.split("/")
    for index in range(len(files)):
        with suppress(UserError):
            files[index]


def own_folder(folder: Path) -> list[Target]:
    for part in ("images/train", "annotations/train"):
        (folder / part).mkdir(parents=True)
    Image.new("RGB", (4, 3)).save(folder / "images/train/a.png")
    Image.new("L", (4, 3), 1).save(folder / "annotations/train/a.png")
    names = b"background\ncat\ndog\n"
    return [Target(folder / "classes.txt", [names], (damage, mutations.damage_lines))]


def read_own_folder(folder: Path, path: Path) -> None:
    files = open_split(DataConfig(name="own", layout="folder", root=str(folder)), "train")
    assert len(files.classes) >= 2
    assert not any(HIDDEN.search(name) for name in files.classes)


def packed_tars(folder: Path) -> list[bytes]:
    """A data set as an archive, plain and packed, with every kind of member."""
    source = folder / "source"
    TinyVOC(source)
    result = []
    for mode, links in (("w", False), ("w:gz", False), ("w", True), ("w:xz", False)):
        with tarfile.open(fileobj=(stream := io.BytesIO()), mode=mode) as archive:  # type: ignore
            archive.add(source / "tiny", "TrainVal/VOCdevkit/VOC2012")
            if links:
                for name, kind, target in (
                    ("TrainVal/up", tarfile.SYMTYPE, ".."),
                    ("TrainVal/hard", tarfile.LNKTYPE, "TrainVal/VOCdevkit/VOC2012"),
                    ("TrainVal/pipe", tarfile.FIFOTYPE, ""),
                    ("TrainVal/" + "long/" * 40 + "name", tarfile.REGTYPE, ""),
                ):
                    member = tarfile.TarInfo(name)
                    member.type, member.linkname = kind, target
                    archive.addfile(member)
        result.append(stream.getvalue())
    shutil.rmtree(source)
    return result


def archives(folder: Path) -> list[Target]:
    plain, gz, links, xz = packed_tars(folder)
    (folder / "data").mkdir()
    (folder / "secret").write_text("not to be touched")
    return [
        Target(folder / "data" / "voc.tar", [plain, gz, links, xz]),
        Target(folder / "data" / "voc.tar", [plain, links], (mutations.damage_tar,)),
    ]


def read_archive(folder: Path, path: Path) -> None:
    root = folder / "data"
    try:
        with Progress(console=Console(quiet=True)) as progress:
            unpack(path, root, "VOCdevkit/VOC2012", progress)
        for made in (root / "VOCdevkit").rglob("*"):
            assert not made.is_symlink()
            assert made.is_file() or made.is_dir()
    finally:
        shutil.rmtree(root / "VOCdevkit", ignore_errors=True)


def sharded(folder: Path) -> list[Target]:
    config = TinyVOC(folder / "files").config()
    write_shards(open_split(config, "train"), folder / "set", "train", shard_samples=3)
    index, tar = folder / "set" / "train.json", folder / "set" / "train-000000.tar"
    return [
        Target(index, [index.read_bytes()], (damage, mutations.damage_json, mutations.damage_json)),
        Target(tar, [tar.read_bytes()], (damage, mutations.damage_tar)),
    ]


def read_shards(folder: Path, path: Path) -> None:
    split = shards(str(folder / "set"), "train")
    assert not any(HIDDEN.search(name) for name in [*split.classes, *split.ids])
    for index in range(len(split)):
        split[index]


def write_again(folder: Path, path: Path) -> None:
    """Goes on with a set whose index or tar is damaged."""
    files = open_split(TinyVOC.config(located(folder / "files")), "train")
    write_shards(files, folder / "set", "train", shard_samples=3)


def unfinished(folder: Path) -> list[Target]:
    index, tar = sharded(folder)
    index.path.unlink()
    index.path.with_suffix(".json").unlink(missing_ok=True)
    return [tar]


def write_on(folder: Path, path: Path) -> None:
    try:
        write_again(folder, path)
    finally:
        (folder / "set" / "train.json").unlink(missing_ok=True)


def located(root: Path) -> TinyVOC:
    tiny = object.__new__(TinyVOC)
    tiny.root, tiny.folder = root, root / "tiny"
    return tiny


def runs(folder: Path) -> list[Target]:
    run = make_run(TinyVOC(folder), "run")
    texts = (damage, mutations.damage_lines)
    jsons = (damage, mutations.damage_json, mutations.damage_json)
    npz = (damage, mutations.damage_zip)
    targets = {
        run / "metrics.json": jsons,
        run / "per_image.npz": npz,
        run / ".hydra" / "config.yaml": texts,
        run / ".hydra" / "hydra.yaml": texts,
        run / "checkpoints" / "last.ckpt": npz,
    }
    return [Target(path, [path.read_bytes()], how) for path, how in targets.items()]


def read_run(folder: Path, path: Path) -> None:
    from fcn.inference import page

    opened = open_runs([str(folder / "run")])
    if path.name != "last.ckpt":
        list(page.facts(opened, [1]))
        list(page.differences(opened))


def overrides(folder: Path) -> list[Target]:
    text = "".join(f"- {override}\n" for override in OVERRIDES.split(" ")).encode()
    return [Target(folder / "overrides.yaml", [text], (damage, mutations.damage_lines))]


def read_recorded(folder: Path, path: Path) -> None:
    for override in read_overrides(path):
        assert not override.lstrip("+~").startswith(("hydra", "-"))


def predictions(folder: Path) -> list[Target]:
    stamp = json.dumps({"checkpoint": "0" * 64, "flip": False})
    from PIL.PngImagePlugin import PngInfo

    about = PngInfo()
    about.add_text(checkpoint.FORMAT, stamp)
    Image.new("L", (4, 3)).save(folder / "a.png", pnginfo=about)
    np.savez_compressed(folder / "a.npz", probabilities=np.zeros((2, 3, 4)), made_by=stamp)
    return [
        Target(folder / "a.png", [(folder / "a.png").read_bytes()], (damage, mutations.damage_png)),
        Target(folder / "a.npz", [(folder / "a.npz").read_bytes()], (damage, mutations.damage_zip)),
    ]


def read_stamp(folder: Path, path: Path) -> None:
    job = jobs.Job(folder / "photo.jpg", folder / "a.png", None, folder / "a.npz")
    jobs.is_done(job, {"checkpoint": "0" * 64, "flip": False})


OVERRIDES = (
    "model=fcn32s backbone=mini data=voc2012 recipe=sample trainer.max_steps=5 recipe.lr=0.01 "
    "model.dropout=0.4 data.classes=[a,b,'c'] recipe.crop=32 recipe.scale=[0.5,2] "
    "seed=3 data.root=some/where trainer.devices=[0,1] data.url=null"
)


def command_lines(folder: Path) -> list[Target]:
    lines = "\n".join(OVERRIDES.split()).encode()
    deep = b"data.classes=" + b"[" * 3000 + b"]" * 3000
    return [
        Target(folder / "line", [lines, lines + b"\n" + deep], (damage, mutations.damage_lines))
    ]


def read_command_line(folder: Path, path: Path) -> None:
    """Every line is one argument, as a shell gives it; flags of Hydra's own are left out."""
    lines = path.read_bytes().replace(b"\0", b"").decode(errors="surrogateescape").split("\n")
    given = [line for line in lines if not line.startswith("-") and "hydra" not in line]
    given += [f"hydra.run.dir='{folder}'", "hydra.output_subdir=null", "hydra/job_logging=disabled"]
    argv, said = sys.argv, io.StringIO()
    sys.argv = ["train.py", *given, "hydra/hydra_logging=disabled"]
    GlobalHydra.instance().clear()
    here = Path.cwd()
    try:
        with redirect_stderr(said), redirect_stdout(io.StringIO()):
            app.run("train", check)
            code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    finally:
        sys.argv = argv
        os.chdir(here)
    if code:
        text = said.getvalue()
        assert text.startswith("error: ")
        assert text.count("\n") == 1, text
        raise UserError(f"{path.name}: {text[:-1]}")


PARSERS = {
    "safetensors": Parser(safetensors, lambda folder, path: fcn.load(path)),
    "ckpt": Parser(ckpt, read_ckpt),
    "backbone": Parser(backbone, read_backbone, 100),
    "caffemodel": Parser(caffe, read_caffe),
    "image": Parser(pictures, read_picture, 400),
    "mask": Parser(masks, read_labels),
    "mat": Parser(mats, read_labels),
    "list": Parser(lists, read_split),
    "classes": Parser(own_folder, read_own_folder),
    "tar": Parser(archives, read_archive, 100),
    "shards": Parser(sharded, read_shards),
    "shards finished": Parser(sharded, write_again, 100),
    "shards unfinished": Parser(unfinished, write_on, 100),
    "run": Parser(runs, read_run, 50, named=False),
    "overrides": Parser(overrides, read_recorded),
    "per image": Parser(
        lambda folder: [t for t in runs(folder) if t.path.suffix == ".npz"],
        lambda folder, path: read_per_image(path),
    ),
    "stamp": Parser(predictions, read_stamp),
    "command line": Parser(command_lines, read_command_line, 20, named=False),
}


class Hang(BaseException):
    """What no parser catches."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises: Hang: after so many seconds of the processor's time."""

    def stop(*_: object) -> None:
        raise Hang(f"{seconds} s were not enough")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def listing(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_size for path in folder.rglob("*")}


def failure(error: BaseException) -> str | None:
    """What is wrong with how a file was refused, if anything."""
    if not isinstance(error, UserError):
        return "".join(traceback.format_exception(error))[-3000:]
    return None


def taken() -> int:
    """The most memory that this process has held since the last call, in bytes; Linux knows."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def attack(name: str, seed: int, folder: Path, targets: list[Target]) -> str:
    """Damages one file and has it read. Returns: "read", "refused", or what went wrong."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    target = pick(rng, targets)
    whole = target.path.read_bytes() if target.path.exists() else None
    target.path.write_bytes(pick(rng, target.mutators)(rng, target.seeds))
    before, outcome, resting = listing(folder.parent), "read", (taken(), taken())[1]
    try:
        with limited(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as a user would have it: they end no program
            PARSERS[name].read(folder, target.path)
    except (Exception, Hang) as error:
        outcome = failure(error) or "refused"
        text = str(error)
        if outcome == "refused" and (HIDDEN.search(text) or len(text) > LONGEST):
            outcome = f"not one line: {text[:300]!r}"
        elif outcome == "refused" and PARSERS[name].named and str(target.path.parent) not in text:
            outcome = f"does not name {target.path.name}: {text}"
    if (grown := taken() - resting) > MEMORY:
        outcome = f"took {grown:,} bytes and {outcome}"
    if listing(folder.parent) != before:
        changed = sorted(set(listing(folder.parent).items()) ^ set(before.items()))
        outcome = f"other files were touched: {changed}"
    target.path.unlink()
    if whole is not None:
        target.path.write_bytes(whole)
    return outcome


def attacks(name: str, seeds: range, root: Path) -> Iterator[tuple[int, str]]:
    folder = root / "space" / "folder"
    folder.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of formats that it will not write for ever
        targets = PARSERS[name].prepare(folder)
    for seed in seeds:
        yield seed, attack(name, seed, folder, targets)


def summary(outcomes: list[tuple[int, str]]) -> tuple[Counter[str], str]:
    """How many were read, refused, or failed; and what failed, each kind of failure once."""
    counts = Counter(o if o in ("read", "refused") else "failed" for _, o in outcomes)
    kinds = {o.strip().splitlines()[-1][:60]: (s, o) for s, o in reversed(outcomes)}
    wrong = [f"seed {s}: {o}" for s, o in kinds.values() if o not in ("read", "refused")]
    return counts, "\n".join(wrong)


@pytest.mark.parametrize("name", PARSERS)
def test_a_damaged_file_is_read_or_refused(name: str, tmp_path: Path) -> None:
    outcomes = list(attacks(name, range(PARSERS[name].fast), tmp_path))
    counts, wrong = summary(outcomes)
    assert not wrong, f"{counts}\n{wrong}"
    assert counts["refused"] > 0


def eats(folder: Path, path: Path) -> None:
    bytearray(MEMORY + 2**27)


def hangs(folder: Path, path: Path) -> None:
    while True:
        pass


def writes(folder: Path, path: Path) -> None:
    (folder.parent / "elsewhere").touch()


def refuses(message: str) -> Callable[[Path, Path], None]:
    def read(folder: Path, path: Path) -> None:
        raise UserError(message)

    return read


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (eats, "took "),
        (hangs, "Hang: 1 s were not enough"),
        (writes, "other files were touched: [('"),
        (refuses("a file is damaged"), "does not name x"),
        (lambda folder, path: {}[path], "KeyError"),
        (lambda folder, path: None, "read"),
    ],
)
def test_the_fuzzer_sees_what_hurts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Any, words: str
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SECONDS", 1)
    monkeypatch.setitem(PARSERS, "x", Parser(lambda f: [Target(f / "x", [b"sound"])], read))
    ((_, outcome),) = attacks("x", range(1), tmp_path)
    assert words in outcome


def in_child(name: str, count: int) -> list[tuple[int, str]]:
    """As `attacks`, in processes of their own; one that dies is followed by another."""
    outcomes: list[tuple[int, str]] = []
    while len(outcomes) < count:
        command = [sys.executable, "-m", "tests.test_fuzz", name, str(len(outcomes)), str(count)]
        child = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False)
        lines = [
            json.loads(line) for line in child.stdout.splitlines() if line.startswith(b'["fuzz"')
        ]
        outcomes += [(seed, outcome) for _, seed, outcome in lines]
        if len(outcomes) < count:
            said = child.stderr.decode(errors="replace")[-2000:]
            outcomes.append((len(outcomes), f"ended the interpreter ({child.returncode}): {said}"))
    return outcomes


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
def test_thousands_of_damaged_files_end_no_interpreter(name: str) -> None:
    counts, wrong = summary(in_child(name, DEEP * PARSERS[name].fast))
    print(name, dict(counts))
    assert not wrong, f"{counts}\n{wrong}"


def main(name: str, first: int, last: int) -> None:
    """Attacks with little memory; one line of JSON an attack."""
    faulthandler.enable()
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ADDRESSES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as root:
        for seed, outcome in attacks(name, range(first, last), Path(root)):
            print(json.dumps(["fuzz", seed, outcome]), flush=True)
            faulthandler.dump_traceback_later(300, exit=True)  # nothing else ends a blocked read


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
