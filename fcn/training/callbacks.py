"""What happens beside training: checkpoints, pictures for TensorBoard, lines on the terminal."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar
from rich.console import Console
from torch import Tensor

from fcn import panels, plots
from fcn.models.upsampling import TransposedConvolution, bilinear_kernel

RECORD_EVERY = 10  # steps between points of the loss curve


def checkpoints(folder: Path) -> list[ModelCheckpoint]:
    """best.ckpt by validation mean IoU, and last.ckpt at every validation.

    `last` comes second, so that it records the best so far.
    """
    common: dict[str, Any] = {
        "dirpath": folder,
        "save_top_k": 1,
        "enable_version_counter": False,
        "save_on_train_epoch_end": False,
    }
    return [
        ModelCheckpoint(filename="best", monitor="val/mean_iou", mode="max", **common),
        ModelCheckpoint(filename="last", **common),
    ]


class History(Callback):
    """Keeps the curves, in the checkpoint too, and prints one line a validation."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.loss: list[tuple[int, float]] = []
        self.mean_iou: list[tuple[int, float]] = []
        self.started = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        due = step == 1 or step % RECORD_EVERY == 0
        if due and (not self.loss or self.loss[-1][0] != step):
            loss = float(trainer.callback_metrics["train/loss"])
            self.loss.append((step, loss))
        if step >= trainer.max_steps:
            trainer.should_stop = True  # whatever val_every: validate after the last step too

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step = trainer.global_step
        if trainer.sanity_checking or (self.mean_iou and self.mean_iou[-1][0] == step):
            return
        mean_iou = float(trainer.callback_metrics["val/mean_iou"])
        self.mean_iou.append((step, mean_iou))
        loss = np.mean([value for _, value in self.loss[-10:]]) if self.loss else np.nan
        best = " (best so far)" if mean_iou >= max(value for _, value in self.mean_iou) else ""
        self.console.print(
            f"step {step}/{trainer.max_steps}  loss {loss:.4g}  "
            f"val mean IoU {mean_iou:.4f}{best}  {time.monotonic() - self.started:.0f} s",
            highlight=False,
        )

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, KeyboardInterrupt):
            self.console.print(
                f"stopped in step {trainer.global_step + 1}; resume=last goes on from the last "
                "checkpoint"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss, "mean_iou": self.mean_iou}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loss = [tuple(point) for point in state_dict["loss"]]
        self.mean_iou = [tuple(point) for point in state_dict["mean_iou"]]


class ProgressBar(RichProgressBar):
    """Lightning's, over the steps of the run: there is but one epoch, so it goes unnamed."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"


class Kernels(Callback):
    """Upsampling kernels in TensorBoard at every validation: pictures, and drift from bilinear.

    Args: classes: of which the first `shown` are drawn.
    """

    def __init__(self, classes: list[str], shown: int = 24) -> None:
        self.classes = classes[:shown]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.logger is None or trainer.sanity_checking or not trainer.is_global_zero:
            return
        board, step = trainer.logger.experiment, trainer.global_step  # type: ignore[attr-defined]
        for name, layer in pl_module.model.named_modules():  # type: ignore[union-attr]
            if isinstance(layer, TransposedConvolution):
                drift = layer.drift()
                board.add_scalar(f"drift from bilinear/{name}", drift, step)
                picture = plots.kernels(
                    layer.diagonal().detach()[: len(self.classes)].double().cpu().numpy(),
                    bilinear_kernel(layer.kernel).double().numpy(),
                    self.classes,
                    f"{name} at step {step}: drift {100 * drift:.1f} %",
                )
                board.add_image(f"kernels/{name}", np.asarray(picture), step, dataformats="HWC")


class Panels(Callback):
    """Image, truth, prediction and errors of the first validation images, in TensorBoard."""

    def __init__(self, classes: list[str], images: int = 4) -> None:
        self.classes, self.images = classes, images
        self.rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: tuple[Tensor, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not trainer.is_global_zero:
            return
        for image, target, prediction in zip(*batch, outputs["prediction"], strict=True):
            if len(self.rows) < self.images:
                pixels = (image.permute(1, 2, 0) * 255).round().byte()
                self.rows.append(
                    tuple(t.cpu().numpy().astype(np.uint8) for t in (pixels, target, prediction))
                )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rows, self.rows = self.rows, []
        if rows and trainer.logger is not None and not trainer.sanity_checking:
            picture = np.asarray(panels.panel(rows, self.classes))
            trainer.logger.experiment.add_image(  # type: ignore[attr-defined]
                "predictions", picture, trainer.global_step, dataformats="HWC"
            )
