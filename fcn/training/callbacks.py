"""What happens during training: checkpoints, lines on the screen, pictures, warnings."""

import math
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import (
    Callback,
    ModelCheckpoint,
    RichProgressBar,
    WeightAveraging,
)
from pytorch_lightning.loggers import MLFlowLogger, TensorBoardLogger
from rich.console import Console
from torch import Tensor

from fcn.dataset_info import DatasetInfo
from fcn.errors import TrainingError
from fcn.inference.evaluate import ONE_CLASS_CAUSES
from fcn.models.upsampling import TransposedConvolution, bilinear_kernel
from fcn.output import percent, warn
from fcn.pictures import plots, visualize

RECORD_EVERY = 10  # steps between points of the loss curve
CHECK_EVERY = 10  # batches between looks at a GPU's loss, which has to be waited for
REPORT_EVERY = 60  # seconds between lines where there is no progress bar
WARN_AFTER = 3  # steps, after which a run's length is estimated
DAY = 24 * 3600  # seconds
SHOWN_IMAGES = 4  # validation images whose predictions are logged
SHOWN_KERNELS = 24  # classes whose upsampling kernels are logged
COLLAPSE_PATIENCE = 3  # consecutive validations that predict a single class before a warning
KEEP_ONE: dict[str, Any] = {
    "save_top_k": 1,
    "enable_version_counter": False,
    "save_on_train_epoch_end": False,
}


class AveragedWeights(WeightAveraging):
    """An exponential moving average of the weights, which is validated and becomes the model.

    After n updates its decay is at most (1 + n) / (10 + n), as in TensorFlow: a constant 0.998
    would still give 67 % of the weight to the first step after 200 of them.

    Args:
        decay: share of the average that each step keeps once n is large; 0..1.
    """

    def __init__(self, decay: float) -> None:
        def updated(average: Tensor, now: Tensor, updates: Tensor | int) -> Tensor:
            # Not as a number of Python's: a GPU would have to be waited for.
            keep = torch.as_tensor((1 + updates) / (10 + updates)).clamp(max=decay)
            return keep * average + (1 - keep) * now

        super().__init__(avg_fn=updated)


class BestCheckpoint(ModelCheckpoint):
    """Keeps best.ckpt, by validation mean IoU, wherever the run's folder has moved to."""

    # Mean IoU of best.ckpt, in 0..1, if the validation split of a resumed run has changed.
    scored_again: float | None = None

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "best", monitor="val/mean_iou", mode="max", **KEEP_ONE)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best so far, in this run's folder: it may have been moved."""
        path = str(Path(str(self.dirpath), "best.ckpt"))
        if not state_dict["best_model_path"] or not Path(path).is_file():
            return  # the next validation makes one
        score = state_dict["best_model_score"]
        if self.scored_again is not None:
            score = torch.tensor(self.scored_again)
        state: dict[str, Any] = {"dirpath": self.dirpath, "best_k_models": {path: score}}
        state |= {"best_model_path": path, "kth_best_model_path": path}
        state |= {"best_model_score": score, "kth_value": score}
        super().load_state_dict(state_dict | state)


class LastCheckpoint(ModelCheckpoint):
    """Keeps last.ckpt, of the last validation."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "last", **KEEP_ONE)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over nothing: the file is overwritten by the next validation."""


class History(Callback):
    """Keeps the curves, in the checkpoint too, and prints a line at every validation."""

    def __init__(self, console: Console) -> None:
        self.console, self.created = console, time.monotonic()
        self.loss: list[tuple[int, float]] = []
        self.mean_iou: list[tuple[int, float]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of the run's steps."""
        self.first_step, self.batches = trainer.global_step, 0
        self.started = self.reported = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Record the loss; ask for a validation after the last step."""
        step = trainer.global_step
        due = step == 1 or step % RECORD_EVERY == 0
        if due and (not self.loss or self.loss[-1][0] != step):
            self.loss.append((step, float(trainer.callback_metrics["train/loss"])))
        if step >= trainer.max_steps:
            trainer.should_stop = True  # makes Lightning validate, whatever the interval
        self._report_progress(trainer, len(batch[0]) * trainer.world_size)

    def _report_progress(self, trainer: pl.Trainer, images: int) -> None:
        """Warn early of a run of more than a day; without a terminal print a line each minute."""
        self.batches += 1
        now = time.monotonic()
        spent = now - self.started
        pace = spent / max(trainer.global_step - self.first_step, 1)
        left = pace * (trainer.max_steps - trainer.global_step)
        if self.batches == WARN_AFTER * trainer.accumulate_grad_batches and left > DAY:
            warn(
                self.console,
                f"at {pace:.3g} s per step this run will take {left / DAY:.1f} days on this "
                "device; see trainer.max_steps, recipe.crop, recipe.batch_size",
            )
        if now - self.reported >= REPORT_EVERY and not self.console.is_terminal:
            self.reported = now
            rate, time_left = self.batches * images / spent, timedelta(seconds=round(left))
            self._print_line(trainer, f"{rate:.3g} images/s  {time_left} left")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record and print the mean IoU."""
        step = trainer.global_step
        if trainer.sanity_checking or (self.mean_iou and self.mean_iou[-1][0] == step):
            return
        mean_iou = float(trainer.callback_metrics["val/mean_iou"])
        self.mean_iou.append((step, mean_iou))
        best = " (best so far)" if mean_iou >= max(value for _, value in self.mean_iou) else ""
        spent = time.monotonic() - self.created
        self._print_line(trainer, f"val mean IoU {percent(mean_iou)} %{best}  {spent:.0f} s")

    def _print_line(self, trainer: pl.Trainer, text: str) -> None:
        loss = float(trainer.callback_metrics["train/loss"])
        step = f"step {trainer.global_step}/{trainer.max_steps}"
        self.console.print(f"{step}  loss of this step {loss:.4g}  {text}")

    def state_dict(self) -> dict[str, Any]:
        """Return the curves."""
        return {"loss": self.loss, "mean_iou": self.mean_iou}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the curves of a resumed run."""
        self.loss = [tuple(point) for point in state_dict["loss"]]
        self.mean_iou = [tuple(point) for point in state_dict["mean_iou"]]


class ProgressBar(RichProgressBar):
    """Lightning's, over the steps of the run: there is only one epoch, so it is not numbered."""

    # Private, but Lightning has no public way to change the words.
    def _get_train_description(self, current_epoch: int) -> str:
        return "training"


class DivergenceCheck(Callback):
    """Stops at a loss that is NaN or infinite; warns when one class is predicted everywhere.

    Args:
        classes: their names.
        precision: of the run.
        folder: of the run, with which it is resumed.
        console: for the warning.
    """

    def __init__(self, classes: list[str], precision: str, folder: Path, console: Console) -> None:
        self.classes, self.folder, self.console = classes, folder, console
        full = "" if precision == "32-true" else "trainer.precision=32-true, "
        self.remedy = f"set {full}a lower recipe.lr or trainer.gradient_clip_val=1"
        self.loss: Tensor | None = None
        self.collapsed = 0  # consecutive validations that predicted a single class

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Check the loss before it changes the weights; a GPU's every few batches."""
        self.loss = loss.detach()
        every = CHECK_EVERY if loss.device.type == "cuda" else 1
        if trainer.fit_loop.total_batch_idx % every == 0:
            self._check_loss(trainer, self.loss)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check loss and weights before the state is saved."""
        if self.loss is None or trainer.sanity_checking:
            return
        self._check_loss(trainer, self.loss)
        if not all(bool(torch.isfinite(weight).all()) for weight in pl_module.parameters()):
            raise TrainingError(
                f"weights are infinite after step {trainer.global_step}; {self._advice()}"
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Warn when the model has predicted one class alone for some validations."""
        predicted = pl_module.validation_confusion.sum(0).nonzero().flatten()  # type: ignore
        self.collapsed = self.collapsed + 1 if len(predicted) == 1 else 0
        if self.collapsed == COLLAPSE_PATIENCE and not trainer.sanity_checking:
            warn(
                self.console,
                f"every pixel was predicted {self.classes[int(predicted)]} in the last "
                f"{COLLAPSE_PATIENCE} validations. {ONE_CLASS_CAUSES}",
            )

    def _check_loss(self, trainer: pl.Trainer, loss: Tensor) -> None:
        if math.isfinite(float(loss)):
            return
        # A GPU's loss is looked at every few batches, so it may have been lost before.
        when = "by" if loss.device.type == "cuda" else "in"
        batch = trainer.fit_loop.total_batch_idx
        images = trainer.datamodule.training_ids(batch)  # type: ignore[attr-defined]
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        raise TrainingError(
            f"the loss is {float(loss)} {when} step {trainer.global_step + 1} (learning rate "
            f"{rate:g}, images {', '.join(images)}); {self._advice()}"
        )

    def _advice(self) -> str:
        if not (self.folder / "checkpoints" / "last.ckpt").is_file():
            return self.remedy
        return f"resume={self.folder} continues from the last checkpoint: {self.remedy}"


class PictureLogger(Callback):
    """Logs pictures at every validation, to loggers that take them: predictions, kernels.

    Args:
        info: names and colours of the classes.
    """

    def __init__(self, info: DatasetInfo) -> None:
        self.info = info
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
        """Keep the first images with their predictions."""
        for image, target, prediction in zip(*batch, outputs["prediction"], strict=True):
            if trainer.is_global_zero and len(self.rows) < SHOWN_IMAGES:
                masks = (target.cpu().numpy(), prediction.byte().cpu().numpy())
                self.rows.append((visualize.as_rgb(image), *masks))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the pictures, and the kernels' distance from bilinear."""
        rows, self.rows = self.rows, []
        if trainer.sanity_checking or not (trainer.is_global_zero and trainer.loggers):
            return
        step = trainer.global_step
        if rows:
            _log_picture(trainer, "predictions", visualize.panel(rows, self.info))
        for name, layer in pl_module.model.named_modules():  # type: ignore[union-attr]
            if not isinstance(layer, TransposedConvolution):
                continue
            drift = layer.drift()
            for logger in trainer.loggers:
                logger.log_metrics({f"drift from bilinear/{name}": drift}, step)
            shown = self.info.classes[:SHOWN_KERNELS]
            picture = plots.kernel_plot(
                layer.diagonal().detach()[: len(shown)].cpu().double().numpy(),
                bilinear_kernel(layer.kernel).double().numpy(),
                shown,
                f"{name} at step {step}: drift {100 * drift:.1f} %",
            )
            _log_picture(trainer, f"kernels/{name}", picture)


def _log_picture(trainer: pl.Trainer, name: str, picture: Image.Image) -> None:
    """Log a picture to every logger that takes pictures."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            pixels = np.asarray(picture)
            logger.experiment.add_image(name, pixels, trainer.global_step, dataformats="HWC")
        elif isinstance(logger, MLFlowLogger):
            file = f"{name}/{trainer.global_step:06d}.png"
            logger.experiment.log_image(logger.run_id, picture, file)
        elif hasattr(logger, "log_image"):  # Weights & Biases and others like it
            logger.log_image(name, [picture], trainer.global_step)
