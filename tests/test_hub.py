"""The Hugging Face layout, offline: folders are local, and a server here stands in for the Hub."""

import base64
import json
import os
import socket
import subprocess
import threading
import venv
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

import fcn
from fcn import checkpoint
from fcn.checkpoint import write_safetensors
from fcn.config import ExportConfig
from fcn.inference import export, hub
from fcn.output import make_console
from tests.conftest import random_model

METRICS = {
    "mean_iou": 0.5,
    "pixel_accuracy": 0.75,
    "mean_accuracy": 0.6,
    "frequency_weighted_iou": 0.7,
    "protocol": {
        "data": "tiny",
        "split": "val",
        "images": 2,
        "size": "original",
        "precision": "32-true",
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model exported in the Hub's layout."""
    root = tmp_path_factory.mktemp("models")
    about = {"classes": list("abcde"), "data": {"name": "tiny"}, "metrics": METRICS}
    torch.manual_seed(0)
    write_safetensors(root / "m.safetensors", random_model(stride=16), about)
    cfg = ExportConfig(f"{root}/m.safetensors", f"{root}/hub", "hub")
    export.main(cfg, root, make_console(quiet=True))
    return root / "hub"


def test_a_hub_folder_loads_as_the_model_and_its_card_has_the_numbers(folder: Path) -> None:
    image = torch.rand(1, 3, 40, 40)
    expected = fcn.load(folder.parent / "m.safetensors")(image)
    assert torch.equal(fcn.load(folder)(image), expected)
    config = json.loads((folder / "config.json").read_text())
    assert config["model"]["stride"] == 16
    assert config["classes"] == list("abcde")
    card = (folder / "README.md").read_text()
    assert "FCN-16s on tiny" in card
    assert "| mean iou | 50.00 |" in card
    assert "tiny val (2 images)" in card
    assert "license" not in card  # the weights are not ours


def test_a_licence_stands_in_the_card_if_given(folder: Path) -> None:
    card = hub.model_card(checkpoint.read(folder).metadata, "cc-by-4.0")
    assert "\nlicense: cc-by-4.0\n---" in card


class Hub(BaseHTTPRequestHandler):
    """A server that speaks as much of the Hub's language as an upload needs."""

    files: ClassVar[dict[str, bytes]] = {}  # what was committed, by kind, repository and path
    made: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        lines = self.rfile.read(int(self.headers["Content-Length"])).splitlines()
        entries, (*_, kind, user, name, action) = list(map(json.loads, lines)), self.parts()
        if action == "create":
            made = entries[0]
            self.made.append(made)
            spaces = "spaces/" if made.get("type") == "space" else ""
            self.answer(url=f"{self.server.address}/{spaces}{made['organization']}/{made['name']}")
        elif action == "validate-yaml":  # of the model card
            self.answer(errors=[], warnings=[])
        elif action == "preupload":
            paths = [file["path"] for file in entries[0]["files"]]
            mode = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self.answer(files=[{"path": path, **mode} for path in paths])
        else:
            for file in (entry["value"] for entry in entries if entry["key"] == "file"):
                content = base64.b64decode(file["content"])
                self.files[f"{kind}/{user}/{name}/{file['path']}"] = content
            address = f"{self.server.address}/{user}/{name}/commit/0"
            self.answer(success=True, commitOid="0" * 40, commitUrl=address)

    def do_GET(self) -> None:
        self.answer(sha="0" * 40, id="me/fcn", siblings=[])

    def parts(self) -> list[str]:
        """/api/models/me/fcn/commit/main -> [..., models, me, fcn, commit]."""
        parts = self.path.partition("?")[0].strip("/").split("/")
        whole = parts[-1] in ("create", "validate-yaml")
        return ["", "", "", *parts] if whole else parts[:-1]

    def answer(self, **content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A stand-in for the Hub on this machine."""
    constants = pytest.importorskip("huggingface_hub.constants")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(Hub, "files", {})
    monkeypatch.setattr(Hub, "made", [])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Hub
    server.shutdown()
    server.server_close()


def test_model_and_space_are_uploaded_and_load_fetches_the_model(
    folder: Path,
    tmp_path: Path,
    command: Callable[..., Any],
    server: type[Hub],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    again = [f"checkpoint={folder}", "format=hub", f"output={tmp_path}/again"]
    command("export", *again, "push=me/fcn", "space=me/demo", "licence=cc-by-4.0")
    kinds = [(made.get("type", "model"), made.get("sdk")) for made in server.made]
    assert kinds == [("model", None), ("space", "gradio")]
    written = tmp_path / "again"
    model = {"config.json", "model.safetensors", "README.md"}
    space = {"app.py", "requirements.txt", "README.md", "model.onnx"}
    sent = {f"models/me/fcn/{name}": written / name for name in model}
    sent |= {f"spaces/me/demo/{name}": written / "space" / name for name in space}
    assert server.files == {path: file.read_bytes() for path, file in sent.items()}
    assert b"license: cc-by-4.0" in server.files["models/me/fcn/README.md"]

    fetched = {"me/fcn": str(folder)}.__getitem__
    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    image = torch.rand(1, 3, 40, 40)
    assert torch.equal(fcn.load("hf://me/fcn")(image), fcn.load(folder)(image))


def test_a_space_without_a_model_repository_can_be_uploaded(
    folder: Path, server: type[Hub]
) -> None:
    hub.push(folder / "space", "me/demo", "space")
    assert {path.split("/")[0] for path in server.files} == {"spaces"}


@pytest.mark.slow
def test_the_space_starts_and_answers_with_the_masks_of_the_model(
    folder: Path, tmp_path: Path
) -> None:
    """In an environment with nothing but what the Space asks for."""
    space, environment = folder / "space", tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "-r", space / "requirements.txt"]
    if subprocess.run(pip, capture_output=True, check=False).returncode:
        pytest.skip("the package registry cannot be reached")
    coarse = torch.rand(1, 3, 4, 5)
    pixels = torch.nn.functional.interpolate(coarse, (97, 131), mode="bilinear")[0]
    image = (pixels * 255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(image).save(tmp_path / "photo.png")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    own = os.environ | {"GRADIO_SERVER_PORT": port, "GRADIO_ANALYTICS_ENABLED": "False"}
    app = subprocess.Popen([python, "app.py"], cwd=space, env=own)
    try:
        client, address = Path(__file__).with_name("call_space.py"), f"http://127.0.0.1:{port}"
        call = [python, client, address, tmp_path / "photo.png"]
        subprocess.run(call, check=True, timeout=300)
    finally:
        app.kill()
        app.wait()
    labels = fcn.Predictor(folder, "cpu")(image)
    with np.load(tmp_path / "photo.png.npz") as found:
        assert {*found} == {"abcde"[k] for k in np.unique(labels)}
        for name, mask in found.items():
            assert (mask == (labels == "abcde".index(name))).mean() >= 0.999
