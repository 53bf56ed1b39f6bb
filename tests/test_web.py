"""The web page of format=web in headless Chromium: its labels are those of Python."""

import json
import shutil
import subprocess
import threading
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from fcn.checkpoint import write_safetensors
from fcn.config import ExportConfig
from fcn.errors import ConfigError
from fcn.inference import export, web_demo
from fcn.inference.reduced_precision import open_session
from fcn.output import make_console
from tests.conftest import random_model
from tests.export_files import noise

CLASSES = ["background", "cat", "dog", "horse", "cow"]
DRIVER = Path(__file__).with_name("drive_page.js")


def write(folder: Path, **settings: Any) -> Path:
    """The page of a random network."""
    source = folder / "model.safetensors"
    write_safetensors(source, random_model(backbone="mini"), {"classes": CLASSES})
    cfg = ExportConfig(checkpoint=str(source), output=f"{folder}/page", format="web", **settings)
    export.main(cfg, folder, make_console(quiet=True))
    return folder / "page"


def test_the_page_knows_its_network_and_names_no_file_that_is_not_there(tmp_path: Path) -> None:
    page = write(tmp_path)
    settings = json.loads((page / "settings.json").read_text())
    assert settings["classes"] == CLASSES
    assert settings["colours"][:2] == [[0, 0, 0], [128, 0, 0]]
    assert settings["runtime"] == web_demo.CDN
    html = (page / "index.html").read_text()
    assert web_demo.CDN.partition("/npm/")[0] in html  # its policy lets the runtime in
    assert {path.name for path in page.iterdir()} == set(web_demo.PAGE_FILES)
    session = open_session(page / "model.onnx")
    (image,), (labels,) = session.get_inputs(), session.get_outputs()
    assert (image.type, labels.type) == ("tensor(uint8)", "tensor(uint8)")


def test_files_of_the_page_that_are_missing_are_named_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"assets=.*: no ort\.wasm\.min\.mjs in it"):
        write(tmp_path, assets=str(tmp_path))
    with pytest.raises(ConfigError, match=r"example=cat\.jpg: no such picture"):
        write(tmp_path, example="cat.jpg")
    assert not (tmp_path / "page").exists()


@pytest.mark.slow
def test_a_page_is_written_again_with_its_own_files(tmp_path: Path) -> None:
    (assets := tmp_path / "dist").mkdir()
    for name in web_demo.RUNTIME_FILES:
        (assets / name).write_text(name)
    example = noise(tmp_path / "cat.png")
    page = write(tmp_path, assets=str(assets), example=str(example))
    own = {"assets": f"{page}/runtime", "example": f"{page}/example.png"}
    (page / "runtime" / web_demo.RUNTIME_FILES[0]).write_text("changed")
    with pytest.raises(ConfigError, match="overwrite=true"):
        write(tmp_path, **own)
    write(tmp_path, **own, overwrite=True)
    assert (page / "example.png").read_bytes() == example.read_bytes()
    assert (page / "runtime" / web_demo.RUNTIME_FILES[0]).read_text() == "changed"


@pytest.mark.parametrize(
    ("channels", "data", "reason"),
    [
        (4, {}, "images of 4 channels"),
        (3, {"bands": ["nir", "red", "green"]}, "the bands nir, red, green"),
        (3, {"value_range": [50, 200]}, "the values 50 to 200"),
    ],
)
@pytest.mark.parametrize(
    "settings",
    [
        {"format": "web"},
        {"format": "hub", "space": "me/demo"},
        {"format": "hub", "precision": "int8"},
    ],
)
def test_a_demo_takes_photographs_alone(
    tmp_path: Path, channels: int, data: dict[str, Any], reason: str, settings: dict[str, Any]
) -> None:
    model = random_model(in_channels=channels)
    write_safetensors(tmp_path / "m.safetensors", model, {"classes": CLASSES, **data})
    cfg = ExportConfig(f"{tmp_path}/m.safetensors", f"{tmp_path}/page", **settings)
    with pytest.raises(ConfigError, match=f"takes {reason}"):
        export.main(cfg, tmp_path, make_console(quiet=True))
    assert not (tmp_path / "page").exists()


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder dist of onnxruntime-web, from the npm registry."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("npm")
    npm = ["npm", "pack", web_demo.RUNTIME]
    if subprocess.run(npm, cwd=folder, capture_output=True, check=False).returncode:
        pytest.skip("the npm registry cannot be reached")
    shutil.unpack_archive(next(folder.glob("*.tgz")), folder, "gztar")
    return folder / "package" / "dist"


@pytest.fixture
def browse(tmp_path: Path) -> Callable[[Path, list[Path]], dict[str, Any]]:
    """Opens a page in Chromium, gives it pictures, and returns what it posts."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium or google-chrome is installed")

    def run(page: Path, pictures: list[Path]) -> dict[str, Any]:
        for picture in pictures:
            shutil.copy(picture, page)
        (page / "photos.json").write_text(json.dumps([picture.name for picture in pictures]))
        shutil.copy(DRIVER, page / "drive.js")
        html = (page / "index.html").read_text()
        driven = html.replace("</head>", '<script type="module" src="drive.js"></script></head>')
        (page / "driven.html").write_text(driven)
        found: dict[str, Any] = {"labels": {}, "asked": []}
        done = threading.Event()

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *arguments: Any) -> None:
                super().__init__(*arguments, directory=str(page))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                query = {k: v[0] for k, v in parse_qs(urlsplit(self.path).query).items()}
                if query:
                    shape = int(query["height"]), int(query["width"])
                    found["labels"][query["name"]] = np.frombuffer(body, np.uint8).reshape(shape)
                    found.setdefault("seconds", []).append(float(query["seconds"]))
                else:
                    found.update(json.loads(body))
                    done.set()
                self.send_response(204)
                self.end_headers()

            def log_message(self, *words: Any) -> None:
                found["asked"].append(self.path)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/driven.html"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", address]
        command += [f"--user-data-dir={tmp_path}/chromium", "--remote-debugging-port=0"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert done.wait(120), found["asked"]
        finally:
            process.kill()
            process.wait()
            server.shutdown()
            server.server_close()
        return found

    return run


def expected(page: Path, picture: Path) -> np.ndarray:
    """The labels of ONNX Runtime in Python."""
    image = np.asarray(Image.open(picture).convert("RGB")).transpose(2, 0, 1)[None]
    return open_session(page / "model.onnx").run(None, {"image": image})[0][0]


@pytest.mark.slow
def test_the_browser_finds_what_python_finds(
    tmp_path: Path, runtime: Path, browse: Callable[..., dict[str, Any]]
) -> None:
    """The last picture is too large: it is shrunk, and the page says so."""
    page = write(tmp_path, assets=str(runtime))
    rng = np.random.default_rng(0)
    for number, size in enumerate([(97, 131), (400, 300), (33, 640), (1000, 2000)]):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
        coarse.resize(size[::-1]).save(tmp_path / f"{number}.png")
    *small, large = pictures = sorted(tmp_path.glob("?.png"))
    found = browse(page, pictures)
    assert found["problems"] == []
    for picture in small:
        labels = expected(page, picture)
        assert len(np.unique(labels)) > 1
        assert (found["labels"][picture.name] == labels).mean() >= 0.999
    labels = found["labels"][large.name]
    assert labels.shape == (320, 640)
    assert "640 × 320" in found["status"]
    assert "seconds" in found["status"]
    shown = found["legend"].replace(" (none of these)", "").split("\n")  # of background
    assert {CLASSES[k] for k in np.unique(labels)} <= set(shown)


@pytest.mark.slow
def test_a_picture_on_which_the_network_fails_leaves_nothing_of_the_last_one(
    tmp_path: Path, runtime: Path, browse: Callable[..., dict[str, Any]]
) -> None:
    """The network takes one size alone, so it fails on the first and the last picture."""
    page = write(tmp_path, assets=str(runtime))
    red = helper.make_node("Gather", ["image", "zero"], ["red"], axis=1)
    nodes = [red, helper.make_node("Reshape", ["red", "size"], ["labels"])]
    given = [
        helper.make_tensor("zero", TensorProto.INT64, [], [0]),
        helper.make_tensor("size", TensorProto.INT64, [3], [1, 32, 32]),
    ]
    image, labels = (
        helper.make_tensor_value_info(name, TensorProto.UINT8, shape)
        for name, shape in (("image", [1, 3, "h", "w"]), ("labels", [1, 32, 32]))
    )
    graph = helper.make_graph(nodes, "one_size", [image], [labels], given)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), page / "model.onnx")
    settings = json.loads((page / "settings.json").read_text())
    (page / "settings.json").write_text(json.dumps(settings | {"example": "missing.jpg"}))
    for number, side in enumerate((33, 32, 33)):
        Image.new("RGB", (side, side), (1, 0, 0)).save(tmp_path / f"{number}.png")
    found = browse(page, sorted(tmp_path.glob("?.png")))
    assert found["start"] == "The network is ready."  # without its example
    assert [one["usable"] for one in found["seen"]] == [False, True, False]
    assert ["cat" in one["legend"] for one in found["seen"]] == [False, True, False]
    assert not any(one["chosen"] for one in found["seen"])  # so each can be chosen again
    assert (found["labels"].pop("1.png") == 1).all()
    assert not found["labels"]
    assert "failed on this picture" in found["status"]


def test_a_page_whose_network_cannot_be_loaded_says_so_whatever_is_dropped(
    tmp_path: Path, browse: Callable[..., dict[str, Any]]
) -> None:
    page = write(tmp_path)
    settings = json.loads((page / "settings.json").read_text())
    (page / "settings.json").write_text(json.dumps(settings | {"runtime": "missing/"}))
    found = browse(page, [])
    assert "could not be loaded" in found["start"]
    assert found["status"] == found["start"]
