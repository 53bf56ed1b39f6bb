"""Training as Lightning sees it: steps, validation, optimiser. No files, no pictures."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from fcn.config import RecipeConfig
from fcn.metrics import confusion_matrix, scores
from fcn.models.fcn import FCN, lay_out
from fcn.training.loss import segmentation_loss
from fcn.training.recipe import make_optimizer, make_schedule, rate_at

Batch = tuple[Tensor, Tensor]


class SegmentationModule(pl.LightningModule):
    """An FCN under a recipe.

    Args:
        model: the net.
        recipe, lr: how it learns.
        seed: of dropout.
        compile: run training steps through torch.compile.
        about: plain values kept in every checkpoint, which `fcn.load` builds the model from:
            "model" (the FCN's arguments), "classes", and what else describes the run.
    """

    def __init__(
        self,
        model: FCN,
        recipe: RecipeConfig,
        lr: float,
        seed: int,
        about: dict[str, Any],
        *,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters({"about": about})
        self.model = model
        # Not validation, whose images differ in size; and no module, so that it stores no weights.
        self.learn = torch.compile(model.forward) if compile else model.forward
        self.recipe, self.lr, self.seed = recipe, lr, seed
        self.confusion = confusion_matrix(model.arguments["num_classes"], over_ranks=True)

    def setup(self, stage: str) -> None:
        lay_out(self.model, self.trainer.strategy.root_device)

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Images travel as bytes; on the device they become RGB in [0, 1], targets int64."""
        image, target = batch
        image = image.to(torch.float32, memory_format=torch.channels_last).div_(255)
        return image, target.long()

    def on_train_start(self) -> None:
        """A run that goes on learns by its recipe as it is now; what it saved was as it began."""
        optimizer, schedule = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        assert isinstance(optimizer, torch.optim.Optimizer)
        assert isinstance(schedule, LambdaLR)
        now = self._optimizer().param_groups
        rate = rate_at(schedule.last_epoch, self.recipe, self.trainer.max_steps)
        for group, fresh in zip(optimizer.param_groups, now, strict=True):
            group |= {key: value for key, value in fresh.items() if key != "params"}
            group |= {"initial_lr": fresh["lr"], "lr": fresh["lr"] * rate}
        schedule.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Dropout, like the data, is a function of seed and batch: a resumed run draws the same."""
        position = [self.seed, self.trainer.fit_loop.total_batch_idx, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(position).generate_state(1)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        image, target = batch
        loss = segmentation_loss(self.learn(image), target, self.recipe.loss_reduction)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        image, target = batch
        prediction = self(image).max(1).indices
        self.confusion.update(prediction, target)
        return {"prediction": prediction}

    def on_validation_epoch_end(self) -> None:
        result = scores(self.confusion.compute())
        self.confusion.reset()
        self.confusion_of_validation = result.confusion
        # Already the same on every rank: the confusion matrix was summed over them.
        self.log("val/mean_iou", result.mean_iou, prog_bar=True)
        self.log("val/pixel_accuracy", result.pixel_accuracy)
        self.log("val/mean_accuracy", result.mean_accuracy)
        self.log("val/frequency_weighted_iou", result.frequency_weighted_iou)

    def _optimizer(self) -> torch.optim.Optimizer:
        scales = self.trainer.precision == "16-mixed" and self.trainer.gradient_clip_val
        fused = not scales  # Lightning does not clip what a fused optimiser is to unscale
        return make_optimizer(self.model, self.recipe, self.lr, fused=fused)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self._optimizer()
        schedule = make_schedule(optimizer, self.recipe, self.trainer.max_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
