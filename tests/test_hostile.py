"""Files made to do harm, by hand: what random damage does not come upon."""

import ast
import io
import json
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from scipy.io import savemat

import fcn
from fcn.config import HIDDEN, REPOSITORY, ConfigError, DataConfig, UserError
from fcn.data import download
from fcn.data.datamodule import open_split
from fcn.data.files import is_id, read_ids
from fcn.data.mat import segmentation
from fcn.data.reading import DataError, read_image, read_mask
from fcn.inference import checkpoint, jobs, npz
from fcn.inference.checkpoint import CheckpointError, write_safetensors
from fcn.inference.evaluation import read_metrics, read_per_image
from fcn.models.caffemodel import CaffeError, read_caffemodel
from fcn.recorded import read_overrides, read_yaml
from tests.caffe_files import floats, message
from tests.conftest import TinyVOC
from tests.test_fcn import small

SCRIPTS = sorted((REPOSITORY / "scripts").glob("*.py"))


def test_a_message_steers_no_terminal() -> None:
    text = str(UserError("a\x1b[2Jb\nc\u202ed\udcff é 漢 " + "x" * 10_000))
    assert text.startswith(r"a\x1b[2Jb c\u202ed\udcff é 漢 xxx")
    assert not HIDDEN.search(text)
    assert len(text) < 2200


# Checkpoints.


class Call:
    """What pickles as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(
    ("function", "argument"),
    [(os.system, "true"), (bytearray, 2**40), (torch.Tensor, 2**40), (set, [1]), (eval, "1")],
)
def test_a_pickle_calls_nothing_but_what_makes_tensors(
    tmp_path: Path, function: Callable[..., Any], argument: Any, new: bool
) -> None:
    content = {"state_dict": Call(function, argument)}
    torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=new)
    for read in (fcn.load, checkpoint.state_dict, checkpoint.history):
        with pytest.raises(CheckpointError, match=r"x\.ckpt: damaged, or .*it calls .*; only tens"):
            read(tmp_path / "x.ckpt")


def packed_again(path: Path, victim: str, content: Callable[[bytes], bytes] = bytes) -> None:
    """The same zip, one of its members packed."""
    with zipfile.ZipFile(path) as there:
        members = [(m.filename, there.read(m)) for m in there.infolist()]
    with zipfile.ZipFile(path, "w") as result:
        for name, data in members:
            if name.endswith(victim):
                result.writestr(name, content(data), zipfile.ZIP_DEFLATED)
            else:
                result.writestr(name, data)


@pytest.mark.parametrize("victim", ["data.pkl", "data/0"])
def test_a_packed_checkpoint_is_refused_without_unpacking(tmp_path: Path, victim: str) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"weight": torch.zeros(1000, 1000), "text": "x" * 10**6}, path)
    packed_again(path, victim)
    assert path.stat().st_size < 4_100_000
    if victim == "data.pkl":
        torch.save({"weight": torch.zeros(1), "text": "x" * 10**6}, path)
        packed_again(path, victim)
        assert path.stat().st_size < 10_000
    with pytest.raises(CheckpointError, match=r"x\.ckpt: damaged"):
        checkpoint.state_dict(path)


def test_no_net_is_built_before_its_weights_are_known_to_be_there(tmp_path: Path) -> None:
    model = small(num_classes=2)
    about = {"classes": ["a", "b"], "model": dict(model.arguments)}
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for key, value in (
        ("num_classes", 10**9),
        ("width", 2**40),
        ("head_width", 10**7),
        ("stride", []),
        ("skip_scales", {"pool4": "x"}),
    ):
        about["model"] = model.arguments | {key: value}
        hyper = {"about": about}
        torch.save({"state_dict": state, "hyper_parameters": hyper}, path := tmp_path / "x.ckpt")
        with pytest.raises(CheckpointError, match=r"x\.ckpt: its weights do not fit its descript"):
            fcn.load(path)
    about["model"] = model.arguments
    for classes in (["a"], ["a", "b", "c"]):
        write_safetensors(path := tmp_path / "x.safetensors", model, {"classes": classes})
        with pytest.raises(CheckpointError, match=f"{len(classes)} class names"):
            fcn.load(path)
    for odd in (["a", "\x1b[2J"], [1, 2], 5, "ab"):
        write_safetensors(path, model, {"classes": odd})
        with pytest.raises(CheckpointError, match="not a checkpoint of this project"):
            fcn.load(path)


def test_weights_larger_than_their_file_are_refused(tmp_path: Path) -> None:
    """A tensor of one number, shown 2^40 times, is no weight of any net here."""
    about = {"classes": ["a", "b"], "model": small(num_classes=2).arguments}
    wide = torch.ones(1).expand(2**40)
    state = {"model.backbone.conv1_1.weight": wide}
    torch.save({"state_dict": state, "hyper_parameters": {"about": about}}, tmp_path / "x.ckpt")
    assert (tmp_path / "x.ckpt").stat().st_size < 5000
    with pytest.raises(CheckpointError, match="do not fit"):
        fcn.load(tmp_path / "x.ckpt")


@pytest.mark.parametrize("claimed", [2**60, 2**64 - 1, 0, 1])
def test_a_safetensors_header_of_any_length(tmp_path: Path, claimed: int) -> None:
    (path := tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", claimed) + b"{}" + bytes(50))
    with pytest.raises(CheckpointError, match=r"x\.safetensors: damaged"):
        fcn.load(path)


def test_a_caffemodels_blob_has_few_axes(tmp_path: Path) -> None:
    """Their product alone would take hours: the number has eight million bits."""
    dims = message(7, message(1, b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f" * 1_000_000))
    blob = message(5, floats(np.ones(1))) + dims
    (path := tmp_path / "x.caffemodel").write_bytes(
        message(100, message(1, "a") + message(7, blob))
    )
    with pytest.raises(CaffeError, match=r"x\.caffemodel: damaged, a blob of over 32 axes"):
        read_caffemodel(path)


# Images and masks.


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6)))


@pytest.mark.parametrize("read", [read_image, lambda path: read_mask(path, 2, 255)])
def test_what_claims_to_be_huge_is_refused(tmp_path: Path, read: Any) -> None:
    (path := tmp_path / "x.png").write_bytes(png(100_000, 100_000))
    with pytest.raises(DataError, match=r"x\.png: .* of more than 89,478,485 pixels"):
        read(path)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse: takes no room on the disk
    with pytest.raises(DataError, match=r"x\.png: unreadable .*1,099,511,627,776 bytes"):
        read(path)


@pytest.mark.parametrize("target", ["/dev/zero", "pipe"])
def test_what_never_ends_is_refused(tmp_path: Path, target: str) -> None:
    if target == "pipe":
        os.mkfifo(tmp_path / "x.png")
    else:
        (tmp_path / "x.png").symlink_to(target)
    with pytest.raises(DataError, match=r"x\.png: unreadable image \(a device or a pipe"):
        read_image(tmp_path / "x.png")


def test_postscript_is_not_run(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4)).save(path := tmp_path / "x.jpg", "EPS")
    with pytest.raises(DataError, match=r"x\.jpg: unreadable image \(PostScript"):
        read_image(path)


def test_an_icons_picture_is_judged_by_its_own_size(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(path := tmp_path / "x.ico", sizes=[(16, 16)])
    data = path.read_bytes()
    picture = png(10_000, 10_000)
    path.write_bytes(data[:14] + struct.pack("<II", len(picture), 22) + picture)
    with pytest.raises(DataError, match=r"x\.ico"):
        read_image(path)


def test_a_jpeg_cut_at_any_marker_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path := tmp_path / "x.jpg")
    whole = path.read_bytes()
    cuts = [at for at in range(2, len(whole) - 2) if whole[at] == 0xFF and whole[at + 1] >= 0xC0]
    assert len(cuts) > 5
    for at in cuts:
        path.write_bytes(whole[:at])
        with pytest.raises(DataError, match=r"x\.jpg: unreadable image"):
            read_image(path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "1", "LA", "F"])
def test_a_mask_of_another_kind_is_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (5, 4)).save(path := tmp_path / "x.tif")
    with pytest.raises(DataError, match=r"x\.tif: a mask must be a palette or grey 8-bit image"):
        read_mask(path, 2, 255)


# MATLAB files.


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(kind: int, shape: tuple[int, ...], name: bytes, *parts: bytes) -> bytes:
    flags = element(6, struct.pack("<II", kind, 0))
    sizes = element(5, struct.pack(f"<{len(shape)}i", *shape))
    return element(14, flags + sizes + element(1, name) + b"".join(parts))


def mat(*parts: bytes) -> bytes:
    content = zlib.compress(b"".join(parts))
    header = b"MATLAB 5.0".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    return header + struct.pack("<II", 15, len(content)) + content


def test_masks_of_matlab_are_read_as_scipy_reads_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for packed in (True, False):
        for shape in ((1, 1), (3, 1), (1, 5), (33, 40)):
            labels = rng.integers(0, 256, shape, dtype=np.uint8)
            fields = {"Boundaries": np.array([[labels > 1]], object), "Segmentation": labels}
            content = {"first": np.eye(2), "GTcls": fields, "last": "text"}
            savemat(path := tmp_path / "x.mat", content, do_compression=packed)
            np.testing.assert_array_equal(segmentation(path.read_bytes()), labels, strict=True)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        mat(matrix(9, (2, 2), b"GTcls", element(2, bytes(4)))),
        mat(element(14, matrix(1, (1, 1), b"GTcls") * 200_000)),
        mat(matrix(2, (1, 2**31 - 1), b"GTcls", element(5, struct.pack("<i", 0)), element(1, b""))),
        mat(matrix(2, (1, 1), b"GTcls", element(5, struct.pack("<i", -1)), element(1, bytes(64)))),
        mat(matrix(9, (1, 1), b"other", element(2, bytes(2**28)))),
    ],
    ids=["empty", "array", "cells", "structures", "names", "bomb"],
)
def test_what_is_no_mask_of_matlab_is_refused(tmp_path: Path, data: bytes) -> None:
    (path := tmp_path / "x.mat").write_bytes(data)
    with pytest.raises(DataError, match=r"x\.mat: unreadable mask"):
        read_mask(path, 21, 255)


def test_a_mask_deeper_than_the_stack_is_refused(tmp_path: Path) -> None:
    """scipy.io.loadmat ends the interpreter at some 100,000."""
    heads, length = [], 0
    for _ in range(200_000):
        head = matrix(1, (1, 1), b"GTcls")[8:]
        heads.append(struct.pack("<II", 14, len(head) + length) + head)
        length += len(heads[-1])
    (path := tmp_path / "x.mat").write_bytes(mat(*reversed(heads)))
    with pytest.raises(DataError, match=r"x\.mat: unreadable mask \(no GTcls in it\)"):
        read_mask(path, 21, 255)


# Lists and names.


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "a/../b", "a\0b", "\x1b[2J", "a//b", "..\\b", "x" * 999],
)
def test_an_id_that_leads_elsewhere_is_refused(tiny_voc: TinyVOC, name: str) -> None:
    assert not is_id(name)
    tiny_voc.listing("train").write_text(f"t0\n{name}\n")
    for read in (
        lambda: open_split(tiny_voc.config(), "train"),
        lambda: read_ids(tiny_voc.listing("train")),
    ):
        with pytest.raises(DataError, match=r"train\.txt: .* is no id of an image"):
            read()


def test_a_list_of_a_million_ids_is_read(tmp_path: Path) -> None:
    (path := tmp_path / "x.txt").write_text("".join(f"{i}\n" for i in range(10**6)))
    assert len(read_ids(path)) == 10**6
    path.write_bytes(np.random.default_rng(0).bytes(10**6))
    with pytest.raises(DataError, match=r"x\.txt: not a text in UTF-8"):
        read_ids(path)


def test_ids_may_have_folders_and_letters_of_any_kind() -> None:
    assert all(map(is_id, ("2007_000027", "a/b.c", "naïve…", "نام‌ها", "漢字\u3000二", "a b")))


def test_class_names_that_steer_a_terminal_are_refused(tmp_path: Path) -> None:
    for part in ("images/train", "annotations/train"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("background\n\x1b]0;mine\x07cat\n")
    with pytest.raises(DataError, match=r"classes\.txt: class name '\\x1b\]0;mine"):
        open_split(DataConfig(name="own", layout="folder", root=str(tmp_path)), "train")


def test_a_list_of_images_names_files(tmp_path: Path) -> None:
    for line in ("/\n", ".\n", "a\0b.jpg\n"):
        with pytest.raises(ConfigError, match=r"input=-: .* cannot be a file"):
            jobs.find_images("-", tmp_path, [line])
    with pytest.raises(ConfigError, match="input=-: not a list in UTF-8"):
        jobs.find_images("-", tmp_path, io.TextIOWrapper(io.BytesIO(b"a\xff.jpg"), "utf-8"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_print_names_as_they_are(script: Path) -> None:
    """A class or a file called [/x] is no markup, which would end the program."""
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Console":
            assert "markup=False" in map(ast.unparse, node.keywords)


# Archives.


def tar(*members: tuple[str, bytes, str], mode: str = "w", content: bytes = b"hello") -> bytes:
    with tarfile.open(fileobj=(stream := io.BytesIO()), mode=mode) as archive:  # type: ignore[call-overload]
        for name, kind, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


FILE, LINK, HARD = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
SOUND = ("VOC/a.txt", FILE, "")


@pytest.mark.parametrize(
    "data",
    [
        tar(SOUND, ("/etc/x", FILE, ""), ("../x", FILE, "")),
        tar(SOUND, ("VOC/../../x", FILE, "")),
        tar(SOUND, ("VOC/link", LINK, "../.."), ("VOC/link/x", FILE, "")),
        tar(SOUND, ("VOC/link", HARD, "../../secret"), ("VOC/link", FILE, "")),
        tar(SOUND, ("VOC", LINK, "../..")),
        tar(SOUND, ("VOC/device", tarfile.CHRTYPE, "")),
        tar(SOUND, ("VOC/pipe", tarfile.FIFOTYPE, "")),
        tar(SOUND, ("VOC/a.txt/b", FILE, "")),
        tar(SOUND, ("VOC/" + "x" * 300, FILE, "")),
        tar(SOUND, ("VOC/bomb", FILE, ""), mode="w:gz", content=bytes(10**7)),
        tar(*[(f"VOC/{i}", FILE, "") for i in range(3000)], mode="w:xz", content=b""),
        b"",
    ],
)
def test_an_archive_writes_nowhere_else(tmp_path: Path, data: bytes) -> None:
    (root := tmp_path / "a" / "data").mkdir(parents=True)
    (root / "x.tar").write_bytes(data)
    (tmp_path / "a" / "secret").write_text("secret")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"x\.tar: "), Progress(console=Console(quiet=True)) as bar:
        download.unpack(root / "x.tar", root, "VOC", bar)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "a" / "secret").read_text() == "secret"


@pytest.mark.parametrize(
    "members",
    [
        [("VOC/link", LINK, "a.txt"), ("VOC/link", FILE, "")],
        [("VOC/link", LINK, "sub"), ("VOC/link/x", FILE, "")],
        [("VOC/hard", HARD, "VOC/a.txt")],
    ],
)
def test_links_are_left_out_of_an_archive(
    tmp_path: Path, members: list[tuple[str, bytes, str]]
) -> None:
    (tmp_path / "x.tar").write_bytes(tar(SOUND, *members))
    with Progress(console=Console(quiet=True)) as bar:
        download.unpack(tmp_path / "x.tar", tmp_path, "VOC", bar)
    made = list((tmp_path / "VOC").rglob("*"))
    assert not any(
        path.is_symlink() or path.lstat().st_nlink > 1 for path in made if path.is_file()
    )
    assert {path.name for path in made} <= {"a.txt", "link", "x"}


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("VOC/big")
    header.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    header.pax_headers |= {"GNU.sparse.name": "VOC/big", "GNU.sparse.realsize": str(2**50)}
    content = b"1\n0\n1\n".ljust(1024, b"\0")
    header.size = len(content)
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(header, io.BytesIO(content))
    with pytest.raises(DataError, match=r"x\.tar: "), Progress(console=Console(quiet=True)) as bar:
        download.unpack(tmp_path / "x.tar", tmp_path, "VOC", bar)


# What runs leave.


def npz_of(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return path


def test_results_by_image_claim_no_more_than_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, counts = np.array(["a", "b"]), np.ones((2, 3, 4), np.int64)
    path = npz_of(tmp_path / "per_image.npz", ids=ids, per_image=counts)
    assert read_per_image(path)[0] == ["a", "b"]
    head = io.BytesIO()
    about = {"descr": "<i8", "fortran_order": False, "shape": (2**40, 3, 4)}
    np.lib.format.write_array_header_1_0(head, about)
    packed_again(path, "per_image.npy", lambda data: head.getvalue() + bytes(192))
    with pytest.raises(UserError, match=r"per_image claims shape \(1099511627776, 3, 4\)"):
        read_per_image(path)
    npz_of(path, ids=ids, per_image=np.zeros((10**5, 3, 4), np.int64))
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(npz, "MOST", 10**6)
    with pytest.raises(UserError, match="per_image claims shape"):
        read_per_image(path)
    for odd in ({"ids": ids}, {"ids": counts, "per_image": counts}, {"ids": ids, "per_image": ids}):
        with pytest.raises(UserError, match="not the results by image"):
            read_per_image(npz_of(path, **odd))
    npz_of(path, ids=np.array([Call(os.system, "true")], object), per_image=counts)
    with pytest.raises(UserError, match="not the results by image"):
        read_per_image(path)


def test_a_prediction_whose_stamp_is_a_pickle_is_none_of_ours(tmp_path: Path) -> None:
    made_by = np.array(Call(os.mkdir, str(tmp_path / "made")), object)
    path = npz_of(tmp_path / "a.npz", made_by=made_by)
    with pytest.raises(ConfigError, match=r"a\.npz is none of predict\.py's"):
        jobs.is_done(jobs.Job(tmp_path / "a.jpg", tmp_path / "a.png", None, path), {"x": 1})
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("text", ["[" * 200_000, "{}", "[]", "nan", '{"classes": 5}', "\ud800"])
def test_metrics_of_any_kind_are_refused(tmp_path: Path, text: str) -> None:
    (path := tmp_path / "metrics.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(UserError, match=r"metrics\.json: damaged, or not this project's"):
        read_metrics(path)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: [*a, *a]",
        "!!python/object/apply:os.system [true]",
        "[" * 100_000,
        "a: [",
        "a: \x01",
        "x" * 2**21,
        "\ud800",
    ],
    ids=["aliases", "object", "deep", "open", "control", "long", "surrogate"],
)
def test_settings_of_any_kind_are_refused(tmp_path: Path, text: str) -> None:
    (path := tmp_path / "config.yaml").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ConfigError, match=r"config\.yaml: damaged, or not settings of a run"):
        read_yaml(path)


def test_settings_read_nothing_of_the_environment(tmp_path: Path) -> None:
    text = "a: {b: 5}\nc: ${a.b}\nd: ${oc.env:HOME}\ne: ${a}\nf: ${c}${c}\ng: ${none.such}\nh: ${h}"
    (path := tmp_path / "config.yaml").write_text(text)
    assert read_yaml(path) == {
        "a": {"b": 5},
        "c": 5,
        "d": "${oc.env:HOME}",
        "e": "${a}",
        "f": "${c}${c}",
        "g": None,
        "h": "${h}",
    }


@pytest.mark.parametrize(
    "override",
    [
        "+hydra.callbacks.x={_target_: os.system, command: 'true'}",
        "hydra.run.dir=/tmp",
        "hydra/launcher=x",
        "++hydra.job_logging.formatters.x={'()': os.getcwd}",
        "~hydra",
        "data@hydra.callbacks=voc2012",
        "--experimental-rerun=config.pickle",
        "--config-dir=elsewhere",
        "-cd=elsewhere",
        "-m",
        "no.such=5",
        {"a": 1},
    ],
)
def test_a_run_that_is_gone_on_with_sets_nothing_of_hydras(tmp_path: Path, override: Any) -> None:
    path = tmp_path / "overrides.yaml"
    path.write_text(json.dumps(["trainer.max_steps=5", override]))
    with pytest.raises(ConfigError, match=r"overrides\.yaml: .* is no setting of a training run"):
        read_overrides(path)
    sound = ["trainer.max_steps=5", "data=voc2012", "+data.x=1", "~data.url", "experiment=voc_mini"]
    path.write_text(json.dumps(sound))
    assert read_overrides(path) == sound
