"""Demos around an ONNX file: a web page that runs it in the browser, and a Gradio Space."""

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from fcn.checkpoint import Checkpoint, complete_metadata
from fcn.config import ExportConfig
from fcn.errors import ConfigError
from fcn.output import write_json

RUNTIME = "onnxruntime-web@1.30.0"  # of npm
CDN = f"https://cdn.jsdelivr.net/npm/{RUNTIME}/dist/"  # also named in index.html's policy
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
PAGE = ("index.html", "page.css", "page.js")
PAGE_FILES = (*PAGE, "settings.json", "model.onnx")
SPACE = ("app.py", "requirements.txt", "README.md")


def check_files(cfg: ExportConfig) -> None:
    """Raise a ConfigError if a file that the page is to have is not there."""
    for name in RUNTIME_FILES:
        if cfg.assets is not None and not Path(cfg.assets, name).is_file():
            raise ConfigError(
                f"assets={cfg.assets}: no {name} in it; give the folder dist of the npm package "
                f"onnxruntime-web (npm pack {RUNTIME}), or leave it out"
            )
    if cfg.example is not None and not Path(cfg.example).is_file():
        raise ConfigError(f"example={cfg.example}: no such picture")


def files_of_page(folder: Path, cfg: ExportConfig) -> list[Path]:
    """Return the files of a page in a folder, with model.onnx."""
    files = [folder / name for name in PAGE_FILES]
    files += [folder / "runtime" / name for name in RUNTIME_FILES] if cfg.assets else []
    return files + ([example_in(folder, cfg.example)] if cfg.example else [])


def example_in(folder: Path, example: str) -> Path:
    """Return where the page keeps the picture that it starts with."""
    return folder / f"example{Path(example).suffix}"


def write_page(folder: Path, trained: Checkpoint, cfg: ExportConfig, console: Console) -> None:
    """Write the page around model.onnx in a folder, with the checkpoint's classes and colours."""
    _copy("web", PAGE, folder)
    runtime, example = CDN, None
    if cfg.assets is not None:
        runtime = "runtime/"
        (folder / runtime).mkdir(exist_ok=True)
        for name in RUNTIME_FILES:
            _copy_file(Path(cfg.assets, name), folder / runtime / name)
    if cfg.example is not None:
        example = example_in(folder, cfg.example).name
        _copy_file(Path(cfg.example), folder / example)
    settings = {
        "classes": trained.classes,
        "colours": complete_metadata(trained.model(), trained.metadata)["palette"],
        "background": trained.info.background,
        "runtime": runtime,
        "example": example,
    }
    write_json(folder / "settings.json", settings)
    console.print(
        f"web page in {folder}: put it on any web server, or try it here: python -m http.server "
        f"--bind 127.0.0.1 --directory {folder}, then open http://127.0.0.1:8000"
    )


def write_space(folder: Path, trained: Checkpoint, licence: str | None, console: Console) -> None:
    """Write a Gradio Space around model.onnx in a folder; `licence` is the Hub's word for it."""
    _copy("space", SPACE, folder)
    if licence is not None:
        card = folder / "README.md"
        text = card.read_text("utf-8").replace("sdk: gradio", f"sdk: gradio\nlicense: {licence}")
        card.write_text(text, "utf-8")
    console.print(f"Gradio Space in {folder}: {', '.join(SPACE)} and model.onnx")


def _copy(kind: str, names: Iterable[str], folder: Path) -> None:
    """Copy files of this package, from the folder fcn/inference/`kind`."""
    for name in names:
        shutil.copyfile(Path(__file__).parent / kind / name, folder / name)


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file of the user's; nothing is to do if it is there already."""
    with suppress(shutil.SameFileError):
        shutil.copyfile(source, target)
