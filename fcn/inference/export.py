"""Export a model to ONNX, torch.export or safetensors, checked in the file's own runtime."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from fcn import checkpoint
from fcn.config import ExportConfig
from fcn.errors import ConfigError, ExportError
from fcn.inference import hub, reduced_precision, web_demo
from fcn.models.fcn import FCN
from fcn.models.upsampling import (
    FixedUpsampling,
    LearnedUpsampling,
    NearestConvUpsampling,
    Size,
)
from fcn.models.vgg import VGG, stage_of
from fcn.output import atomic_write, refuse_overwriting, write_json

SUFFIX = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ".safetensors"}
# The smallest side that torch.export takes: it treats a size of 1 specially, here that of pool5.
SMALLEST = 33
SIZES = [(33, 47), (64, 96), (97, 131), (225, 320)]  # checked, each alone and as a batch of two
INSTALL = 'pip install "fcn-segmentation[export]"'
TOLERANCE = 1e-4  # of the scores' range
RGB = ("red", "green", "blue")
OPSET, IR_VERSION = 18, 8  # ONNX Runtime 1.15, of May 2023, runs all files written here


class _Labels(nn.Module):
    """A model whose output is labels, uint8 (B, H, W), instead of scores."""

    def __init__(self, model: FCN) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image).argmax(1).to(torch.uint8)


def main(cfg: ExportConfig, folder: Path, console: Console) -> None:
    """Write `cfg.output`, if it agrees with the model; only then an older file is replaced.

    Raises:
        ConfigError: settings that do not fit together, or a missing package.
        CheckpointError: the checkpoint holds no model.
        DataError: a precision is to be compared on images that are not there.
        ExportError: the exported file computes something else; an older file stays as it was.
    """
    check(cfg)
    if cfg.format not in ("hub", "web"):
        write_file(cfg, console)
        return
    output, trained = Path(cfg.output), checkpoint.read(cfg.checkpoint)
    other = _other_than_photographs(trained)
    if other and (cfg.format == "web" or cfg.space is not None or cfg.precision != "float32"):
        raise ConfigError(
            f"checkpoint={cfg.checkpoint} takes {other}, and a demo takes photographs; use "
            "format=onnx, or format=hub without space and precision"
        )
    output.mkdir(parents=True, exist_ok=True)
    if cfg.format == "web":
        _write_for_demo(cfg, output, console)
        web_demo.write_page(output, trained, cfg, console)
        return
    _write_hub_folder(output, trained, cfg, console)
    space = output / "space"
    if other or _missing():
        reason = "it would take photographs" if other else f"it needs {INSTALL}"
        console.print(f"note: no demo is written: {reason}")
    else:
        space.mkdir(exist_ok=True)
        _write_for_demo(cfg, space, console)
        web_demo.write_space(space, trained, cfg.licence, console)
    if cfg.push is not None:
        console.print(f"uploaded to {hub.push(output, cfg.push)}")
    if cfg.space is not None:
        console.print(f"uploaded to {hub.push(space, cfg.space, 'space')}")


def _other_than_photographs(trained: checkpoint.Checkpoint) -> str:
    """Return what a network takes if it is no RGB of 8 bits, or ""."""
    channels, info = trained.metadata["model"].get("in_channels", 3), trained.info
    if channels != 3:
        return f"images of {channels} channels"
    if [str(band).lower() for band in info.bands] not in ([], ["0", "1", "2"], [*RGB]):
        return f"the bands {', '.join(map(str, info.bands))}"
    if info.value_range and list(info.value_range) != [0, 255]:
        return f"the values {info.value_range[0]:g} to {info.value_range[1]:g} as black and white"
    return ""


def _write_for_demo(cfg: ExportConfig, folder: Path, console: Console) -> None:
    """Write model.onnx as a demo reads it: images of bytes to labels."""
    output = str(folder / "model.onnx")
    write_file(replace(cfg, format="onnx", output=output, input="uint8", argmax=True), console)


def write_file(cfg: ExportConfig, console: Console) -> None:
    """Write one file, and beside it as .json what its precision costs; see `main`."""
    source, output = checkpoint.find(cfg.checkpoint), Path(cfg.output)
    trained = checkpoint.read(source)
    model = trained.model().requires_grad_(False)
    origin = {"file": source.name, "sha256": checkpoint.sha256(source)}
    known = {"checkpoint": origin, "background": trained.info.background}
    metadata = checkpoint.without_folder(trained.metadata)
    metadata = checkpoint.complete_metadata(model, metadata | known)
    uint8 = cfg.input == "uint8"
    sizes = SIZES if cfg.format == "torch_export" else [(1, 1), *SIZES]
    batches: tuple[int, ...] = (1, 2)
    if cfg.size is not None:
        sizes, batches = [(cfg.size[0], cfg.size[1])], (1,)
    reduces = cfg.precision != "float32"
    data = reduced_precision.open_data(cfg, trained, console) if reduces else None
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as temporary:
        _write(temporary, cfg, trained.model().requires_grad_(False), metadata)
        run = open_exported(temporary, cfg.format, metadata)
        shapes = [(batch, model.in_channels, *size) for size in sizes for batch in batches]
        images = [_blobs(*shape, uint8=uint8) for shape in shapes]
        difference = max(_difference(model, run, image, output) for image in images)
        if data is not None:
            cost = reduced_precision.reduce_precision(temporary, cfg, trained, *data, console)
            write_json(output.with_suffix(".json"), cost)
    if data is None:
        for older in _reports(output, cfg):
            older.unlink()
    if (other := _other_than_photographs(trained)) and cfg.format != "safetensors":
        console.print(f"note: the network takes {other}, which a user of the file must provide")
    before = "before that, " if reduces else ""
    console.print(
        f"{cfg.format} in {output}: {output.stat().st_size / 1e6:.1f} MB; {before}on images of "
        f"{len(sizes)} size{'s' * (len(sizes) > 1)} its scores differ from the model's by at most "
        f"{100 * difference:.1e} % of their range"
    )


def _write_hub_folder(
    output: Path, trained: checkpoint.Checkpoint, cfg: ExportConfig, console: Console
) -> None:
    """Write config.json, model.safetensors and a model card."""
    model, metadata = trained.model(), checkpoint.without_folder(trained.metadata)
    write_json(output / "config.json", checkpoint.complete_metadata(model, metadata))
    checkpoint.write_safetensors(output / "model.safetensors", model, metadata)
    (output / "README.md").write_text(
        hub.model_card(trained.metadata, cfg.licence), encoding="utf-8"
    )
    console.print(f"config.json, model.safetensors and README.md in {output}")


def check(cfg: ExportConfig) -> None:
    """Raise a ConfigError for settings that do not fit together, or a missing package."""
    output, suffix = Path(cfg.output), SUFFIX.get(cfg.format, "")
    if not suffix and output.suffix in SUFFIX.values():
        raise ConfigError(f"output={output}: format={cfg.format} writes a folder; name one")
    if suffix and output.suffix != suffix:
        raise ConfigError(f"output={output} must end in {suffix} for format={cfg.format}")
    if cfg.format == "web":
        files = [*web_demo.files_of_page(output, cfg), *_reports(output / "model.onnx", cfg)]
    elif cfg.format == "hub":
        files = [output / name for name in (*hub.FILES["model"], "space")]
    else:
        files = [output, *_reports(output, cfg)]
    refuse_overwriting(files, cfg.overwrite)
    if cfg.format == "web":
        web_demo.check_files(cfg)
    needed = cfg.format in ("onnx", "web") or cfg.space is not None or cfg.precision != "float32"
    if needed and (missing := _missing()):
        raise ConfigError(f"format={cfg.format} needs {', '.join(missing)}: {INSTALL}")


def _reports(file: Path, cfg: ExportConfig) -> list[Path]:
    """Return what this command replaces beside an ONNX file: the .json on its precision, if any.

    A float32 file has none, so that of an older file is removed.
    """
    path = file.with_suffix(".json")
    if cfg.precision != "float32":
        return [path]
    if file.suffix != ".onnx":
        return []
    try:
        is_report = {"precision", "keep", "calibration"} <= set(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        is_report = False
    return [path] if is_report else []


def _missing() -> list[str]:
    """Return the packages of the extra [export] that are not installed."""
    return [name for name in ("onnx", "onnxruntime", "onnxscript") if not find_spec(name)]


def _write(path: Path, cfg: ExportConfig, model: FCN, metadata: dict[str, Any]) -> None:
    """Write the model in one of the formats, with what `complete_metadata` returned inside."""
    if cfg.format == "safetensors":
        checkpoint.write_safetensors(path, model, metadata)
        return
    program = _trace(model, cfg)
    if cfg.format == "torch_export":
        with path.open("wb") as file:
            torch.export.save(program, file, extra_files=checkpoint.as_text(metadata))
        return
    exported = torch.onnx.export(
        program,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["labels" if cfg.argmax else "score"],
        dynamic_shapes=None if cfg.size else {"image": {0: "batch", 2: "height", 3: "width"}},
        verbose=False,
    )
    assert exported is not None
    exported.model.ir_version = IR_VERSION
    exported.model.metadata_props.update(checkpoint.as_text(metadata))
    for node in exported.model.graph:
        if node.op_type == "Conv":  # backbone.conv1_1.weight -> conv1_1
            weight = node.inputs[1]
            assert weight is not None
            node.name = str(weight.name).split(".")[-2]
    exported.save(path, external_data=False)


def _trace(model: FCN, cfg: ExportConfig) -> ExportedProgram:
    """Return the model's graph, for one image of cfg.size, or for any from SMALLEST up."""
    side = Dim.DYNAMIC(min=SMALLEST)
    shapes = None if cfg.size else {"image": {0: Dim.DYNAMIC, 2: side, 3: side}}
    batch, height, width = (1, *cfg.size) if cfg.size else (2, 97, 131)
    example = _blobs(batch, model.in_channels, height, width, uint8=cfg.input == "uint8")
    _relu_before_pool(model.backbone)
    _store_kernels(model)
    if cfg.size:
        _store_matrices(model, example)
    whole = _Labels(model) if cfg.argmax else model
    program = torch.export.export(whole, (example,), dynamic_shapes=shapes)
    for part in program.graph_module.modules():
        for node in part.graph.nodes:
            node.meta.pop("stack_trace", None)  # names this machine's folders
    return program


def _relu_before_pool(backbone: VGG) -> None:
    """Move each stage's last ReLU before its pool, which changes no value.

    Runtimes compute a convolution and the ReLU behind it as one, and its 8-bit results need no room
    for negative numbers.
    """
    layers = dict(backbone.named_children())
    for name in layers:
        delattr(backbone, name)
    # Sorting keeps the order of what is equal: of a stage's layers, all but its pool.
    for name in sorted(layers, key=lambda name: (stage_of(name), name.startswith("pool"))):
        backbone.add_module(name, layers[name])


def _store_kernels(model: FCN) -> None:
    """Store the kernels that layers compute in each call, which OpenCV cannot do."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, NearestConvUpsampling):
            stored = LearnedUpsampling(layer.factor, len(layer.weight))
            stored.weight = nn.Parameter(layer.kernels(), requires_grad=False)
            model.set_submodule(name, stored)


class _Matrices(nn.Module):
    """A `FixedUpsampling` for scores of one size, with its two matrices as constants.

    They stand second in the products, as the DNN module of older OpenCV versions needs it.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows.T.contiguous())  # h,H
        self.register_buffer("columns", columns.T.contiguous())  # w,W

    def forward(self, score: Tensor, offset: int = 0, size: Size | None = None) -> Tensor:
        wide = score @ self.columns  # (B,K,h,w) (w,W) -> B,K,h,W
        return (wide.transpose(-1, -2) @ self.rows).transpose(-1, -2)  # B,K,H,W


@torch.no_grad()
def _store_matrices(model: FCN, image: Tensor) -> None:
    """Store the matrices of fixed upsampling for an image's size: OpenCV cannot compute them."""

    def replace_layer(name: str, layer: FixedUpsampling, given: Any, result: Tensor) -> None:
        score, offset = given[0], given[1] if len(given) > 1 else 0
        sides = zip(score.shape[-2:], result.shape[-2:], strict=True)
        matrices = [layer.matrix(n, offset, out, score) for n, out in sides]
        model.set_submodule(name, _Matrices(*matrices))

    for name, layer in model.named_modules():
        if isinstance(layer, FixedUpsampling):
            layer.register_forward_hook(partial(replace_layer, name))
    model(image)


def open_exported(path: Path, kind: str, metadata: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """Open an exported file in its own runtime."""
    if kind == "safetensors":
        return checkpoint.Checkpoint(path, load_file(path), metadata).model()
    if kind == "torch_export":
        with path.open("rb") as file:
            return torch.export.load(file).module()
    import onnxruntime  # of the extra [export]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def _blobs(batch: int, channels: int, height: int, width: int, *, uint8: bool) -> Tensor:
    """Return images of coloured blobs, always the same: most models see one class in noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, channels, 4, 5, generator=generator)
    image = F.interpolate(coarse, (height, width), mode="bilinear")
    return (image * 255).to(torch.uint8) if uint8 else image


@torch.inference_mode()
def _difference(model: FCN, run: Callable[[Tensor], Tensor], image: Tensor, output: Path) -> float:
    """Return how far an exported model is off, as a fraction of the scores' range.

    For labels, the error is the best score minus the score of the named class.

    Raises:
        ExportError: more than `TOLERANCE`.
    """
    try:
        score, result = model(image), run(image)
    except (RuntimeError, AssertionError) as error:
        raise ExportError(
            f"{output}: not written, as the exported model fails on images {tuple(image.shape)} "
            f"({str(error).splitlines()[0][:100]}); some versions of torch between 2.9 and 2.13 "
            f"export .pt2 files so, this is {torch.__version__}: use another, or format=onnx"
        ) from error
    if result.ndim == 3:
        off = score.max(1).values - score.gather(1, result.long()[:, None])[:, 0]
    else:
        off = (result - score).abs()
    difference = float(off.max() / (score.max() - score.min()).clamp(min=1e-30))
    if not difference <= TOLERANCE:  # so that a NaN fails too
        raise ExportError(
            f"{output}: not written, as for images {tuple(image.shape)} its scores differ from "
            f"the model's by {100 * difference:.2g} % of their range"
        )
    return difference
