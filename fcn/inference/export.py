"""A trained net as a file for other programs, checked in its own runtime before it is kept."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from fcn.config import ExportConfig, UserError
from fcn.inference import checkpoint
from fcn.models.fcn import FCN

# The smallest side that torch.export takes: it sets a size of 1 apart, here of pool5.
SMALLEST = 33
SIZES = [(33, 47), (64, 96), (97, 131), (225, 320)]  # checked, each alone and as a batch of two
TOLERANCE = 1e-4  # of the scores' range

Run = Callable[[Tensor], Tensor]


class ExportError(UserError, RuntimeError):
    """An exported file that does not do what the model does."""


class Exported(nn.Module):
    """The net with what is to happen inside the file.

    forward: RGB (B, 3, H, W), float in [0, 1] or uint8 -> score, float (B, K, H, W), or, with
    `argmax`, labels, uint8 (B, H, W).
    """

    def __init__(self, model: FCN, *, argmax: bool) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.argmax = argmax

    def forward(self, image: Tensor) -> Tensor:
        score = self.model(image.float() / 255 if image.dtype == torch.uint8 else image)
        return score.argmax(1).to(torch.uint8) if self.argmax else score


@dataclass(frozen=True)
class Agreement:
    """How an exported net compares with the model on some images."""

    shape: tuple[int, ...]  # of the images: B, 3, H, W
    difference: float  # largest, relative to the range of the scores
    labels: float  # fraction of pixels whose label is the same


def export(cfg: ExportConfig, console: Console) -> list[Agreement]:
    """Writes `cfg.output`, replacing an older file only once the new one is known to agree.

    The settings have passed `fcn.checks.scripts.check_export`.
    Raises: CheckpointError: no model. ExportError: the file's runtime gives other scores than the
        model; nothing is left behind.
    """
    assert cfg.checkpoint is not None
    assert cfg.output is not None
    source, output = Path(cfg.checkpoint), Path(cfg.output)
    trained = checkpoint.read(source)
    model = trained.model()
    about = trained.about | {
        "checkpoint": {"file": source.name, "sha256": checkpoint.sha256(source)}
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f"{output.stem}.part{output.suffix}")
    uint8 = cfg.input == "uint8"
    try:
        write(temporary, cfg.format, Exported(model, argmax=cfg.argmax), about, uint8=uint8)
        sizes = SIZES if cfg.format == "torch_export" else [(1, 1), *SIZES]
        agreements = compare(model, RUNTIMES[cfg.format](temporary), sizes, uint8=uint8)
        for found in agreements:
            if not found.difference <= TOLERANCE:  # so that a NaN fails too
                raise ExportError(
                    f"{output}: not written, as for images {shape_text(found.shape)} it differs "
                    f"from {source} by {found.difference:.2g} of the scores' range"
                )
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    report(console, cfg.format, output, agreements)
    return agreements


def write(path: Path, kind: str, net: Exported, about: dict[str, Any], *, uint8: bool) -> None:
    """The net in one of the formats, with `about` inside. uint8: what its images are."""
    if kind == "safetensors":
        checkpoint.write_safetensors(path, net.model, about)
        return
    program = trace(net, uint8=uint8)
    metadata = checkpoint.metadata(checkpoint.describe(net.model, about))
    if kind == "torch_export":
        torch.export.save(program, path, extra_files=metadata)
        return
    exported = torch.onnx.export(
        program,
        input_names=["image"],
        output_names=["labels" if net.argmax else "score"],
        dynamic_shapes={"image": {0: "batch", 2: "height", 3: "width"}},
        verbose=False,
    )
    assert exported is not None
    exported.model.metadata_props.update(metadata)
    exported.save(path, external_data=False)


def trace(net: Exported, *, uint8: bool) -> ExportedProgram:
    """The net's graph, for any batch and any image from SMALLEST x SMALLEST up."""
    side = Dim.DYNAMIC(min=SMALLEST)
    program = torch.export.export(
        net,
        (blobs((2, 3, 97, 131), uint8=uint8),),
        dynamic_shapes={"image": {0: Dim.DYNAMIC, 2: side, 3: side}},
    )
    for part in program.graph_module.modules():
        for node in part.graph.nodes:
            node.meta.pop("stack_trace", None)  # names this machine's folders
    return program


def blobs(shape: tuple[int, int, int, int], *, uint8: bool) -> Tensor:
    """Coloured blobs, always the same: in plain noise most nets see one class only."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(*shape[:2], 4, 5, generator=generator)
    image = F.interpolate(coarse, shape[2:], mode="bilinear")
    return (image * 255).to(torch.uint8) if uint8 else image


@torch.inference_mode()
def compare(model: FCN, run: Run, sizes: list[tuple[int, int]], *, uint8: bool) -> list[Agreement]:
    """The exported net against the model, at each size for one image and for two.

    Raises: ExportError: an output of another shape.
    """
    found = []
    for height, width in sizes:
        for batch in (1, 2):
            image = blobs((batch, 3, height, width), uint8=uint8)
            score = model(image.float() / 255 if uint8 else image)
            found.append(agreement(tuple(image.shape), score, run(image)))
    return found


def agreement(shape: tuple[int, ...], score: Tensor, output: Tensor) -> Agreement:
    """How far an exported net's output is from the model's score (B, K, H, W).

    Labels, uint8 (B, H, W), are as far off as the scores of what they name lie below the best.
    """
    best, labels = score.max(1)
    expected = labels.shape if output.dtype == torch.uint8 else score.shape
    if output.shape != expected:
        raise ExportError(
            f"for images {shape_text(shape)} the exported net gives {shape_text(output.shape)}, "
            f"the model {shape_text(expected)}; nothing was written"
        )
    if output.dtype == torch.uint8:
        chosen = output.long()
        off = best - score.gather(1, chosen[:, None])[:, 0]
    else:
        chosen = output.argmax(1)
        off = (output - score).abs()
    spread = (score.max() - score.min()).clamp(min=torch.finfo(score.dtype).tiny)
    same = (chosen == labels).float().mean()
    return Agreement(shape, float(off.max() / spread), float(same))


def open_safetensors(path: Path) -> Run:
    return checkpoint.load(path)


def open_torch_export(path: Path) -> Run:
    return torch.export.load(path).module()


def open_onnx(path: Path) -> Run:
    import onnxruntime  # of the extra [export]

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


RUNTIMES: dict[str, Callable[[Path], Run]] = {
    "safetensors": open_safetensors,
    "onnx": open_onnx,
    "torch_export": open_torch_export,
}


def report(console: Console, kind: str, output: Path, agreements: list[Agreement]) -> None:
    """The table of what was checked, and a last line that says what is where."""
    table = Table("images", "largest difference", "same labels", box=None)
    for found in agreements:
        table.add_row(
            shape_text(found.shape),
            f"{found.difference:.1e} of the scores' range",
            f"{100 * found.labels:.3f} %",
        )
    console.print(table)
    size = output.stat().st_size / 1e6
    console.print(
        f"{kind} in {output}: {size:.1f} MB, agrees with the model",
        highlight=False,
        soft_wrap=True,
    )


def shape_text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
