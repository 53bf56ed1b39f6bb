"""What goes wrong in training, said at once and with its likely causes."""

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from torch import Tensor

from fcn.config import UserError
from fcn.models.upsampling import Upsampling
from fcn.training.safekeeping import save_between_steps

EVERY = 10  # batches between looks at a GPU's loss, which it must be waited for
ALIKE = 3  # validations in a row with one class alone predicted


class TrainingError(UserError, RuntimeError):
    """Training that cannot usefully go on."""


class Diagnosis(Callback):
    """Looks for a loss that is no number, layers that cannot learn, and one class everywhere.

    A CPU's loss is looked at in every batch, before anything is changed by it.

    Args:
        last: the run's last.ckpt. Where the loss is no number, before_nan.ckpt is left in the run's
            folder: the net before that step.
        classes: their names.
    """

    def __init__(self, last: Path, classes: list[str], console: Console) -> None:
        self.last, self.classes, self.console = last, classes, console
        self.before = last.parent.parent / "before_nan.ckpt"
        self.finite: float | None = None  # the last loss seen that was a number
        self.latest: Tensor | None = None
        self.buffers: list[Tensor] = []  # of batch norm, before the step: forward changes them
        self.alike = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        first = trainer.fit_loop.total_batch_idx % trainer.accumulate_grad_batches == 0
        if first and pl_module.device.type != "cuda":
            self.buffers = [buffer.clone() for buffer in pl_module.buffers()]

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Raises: TrainingError: the loss is infinite or no number."""
        self.latest = loss.detach()
        every = EVERY if loss.device.type == "cuda" else 1
        if trainer.fit_loop.total_batch_idx % every == 0:
            self._look(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before the state is saved: a GPU's last few losses may not have been looked at.

        Raises: TrainingError: the last loss, or a weight, is infinite or no number.
        """
        if self.latest is None or trainer.sanity_checking:
            return
        self._look(trainer, pl_module)
        if not is_finite(pl_module):
            raise TrainingError(
                f"weights are infinite after step {trainer.global_step}, though its loss was not; "
                "resume=last with a lower recipe.lr goes on from the last checkpoint"
            )

    def _look(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self.latest is not None
        loss, batch = self.latest, trainer.fit_loop.total_batch_idx
        value = float(loss) * trainer.accumulate_grad_batches
        if math.isfinite(value):
            self.finite = value
            return
        held = ""
        if loss.device.type != "cuda" and trainer.world_size == 1 and is_finite(pl_module):
            for buffer, before in zip(pl_module.buffers(), self.buffers, strict=True):
                buffer.copy_(before)
            # Not last.ckpt: a step too large may have left weights that are of no use.
            save_between_steps(trainer, self.before)
            held = f"; {self.before} holds the net before this step"
        if self.last.is_file():
            held += f"; {self.last} holds that of a sound validation"
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        since = "none before it" if self.finite is None else f"the last before it {self.finite:g}"
        images = ", ".join(trainer.datamodule.training_ids(batch))  # type: ignore[attr-defined]
        step = trainer.global_step + 1
        raise TrainingError(
            f"the loss is {value} in step {step} ({since}; learning rate {lr:g}; "
            f"images {images}){held}; resume= goes on from there, "
            "with a lower recipe.lr or trainer.gradient_clip_val=1"
        )

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Raises: TrainingError: in the first step, something trainable is outside the graph."""
        if trainer.global_step == 0:
            trained = pl_module.model.named_parameters()  # type: ignore[union-attr]
            cut_off = [name for name, p in trained if p.requires_grad and p.grad is None]
            if cut_off:
                raise TrainingError(f"no gradient reaches {', '.join(cut_off)}; a layer is cut off")
        if trainer.global_step == EVERY:  # score layers start at zero, and pass nothing on at first
            for name, layer in pl_module.model.named_modules():  # type: ignore[union-attr]
                if isinstance(layer, Upsampling) and any(
                    p.grad is not None and not p.grad.any() for p in layer.parameters(recurse=False)
                ):
                    self.warn(f"{name} still gets a gradient of zero: it is not learning")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        confusion: Tensor = pl_module.confusion_of_validation  # type: ignore[assignment]
        predicted = confusion.sum(0).nonzero().flatten()
        self.alike = self.alike + 1 if len(predicted) == 1 else 0
        if self.alike == ALIKE and not trainer.sanity_checking:
            self.warn(
                f"every pixel has been predicted {self.classes[int(predicted)]} for {ALIKE} "
                "validations; likely causes: a learning rate far too high or too low, pretrained "
                "weights that are missing (backbone.weights, model.init_from), masks whose labels "
                "are not the classes (scripts/prepare_data.py shows them), or simply too few steps"
            )

    def warn(self, message: str) -> None:
        self.console.print(f"warning: {message}", style="yellow", highlight=False)

    def state_dict(self) -> dict[str, Any]:
        return {"alike": self.alike, "finite": self.finite}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.alike, self.finite = state_dict["alike"], state_dict["finite"]


def is_finite(net: torch.nn.Module) -> bool:
    """Whether every weight is a number: a step too large may have left others unnoticed."""
    return all(bool(torch.isfinite(weight).all()) for weight in net.parameters())
