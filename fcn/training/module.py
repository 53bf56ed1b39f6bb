"""Training as Lightning sees it: steps, validation, optimiser. No files, no pictures."""

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from fcn.config import RecipeConfig
from fcn.dataset_info import VOID
from fcn.device import optimize
from fcn.inference.metrics import ConfusionMatrix, metrics_of
from fcn.models.fcn import FCN
from fcn.models.tiles import TILE, score_tile, tiles
from fcn.training.optim import clips_gradients, make_optimizer, make_schedule, rate_at

Batch = tuple[Tensor, Tensor]  # image uint8 (B, C, H, W), target uint8 (B, H, W)


class SegmentationModule(pl.LightningModule):
    """An FCN under a recipe.

    Args:
        model: the network.
        recipe: how it learns; its learning rate is set.
        loss: of (score, target); if it is a module, its tensors follow the device.
        seed: of dropout.
        metadata: plain values kept in every checkpoint, from which `fcn.load` builds the model:
            "model" (FCN's arguments), "classes", and what else describes the run.
        compile: run training steps through torch.compile.
    """

    def __init__(
        self,
        model: FCN,
        recipe: RecipeConfig,
        loss: Callable[[Tensor, Tensor], Tensor],
        seed: int,
        metadata: dict[str, Any],
        *,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters({"about": metadata})
        self.metadata = metadata
        self.model = model
        self.classes = metadata.get("classes", range(model.arguments["num_classes"]))
        # Compiled for training alone, as images of validation differ in size; a function, not a
        # module, so that its weights are not stored twice.
        self.training_forward = torch.compile(model.forward) if compile else model.forward
        self.recipe, self.loss, self.seed = recipe, loss, seed
        self.to_stop = False  # a callback has asked for it
        self.confusion = ConfusionMatrix(model.arguments["num_classes"], sync_on_compute=True)

    def setup(self, stage: str) -> None:
        """Move the model to its device in its fastest form there."""
        optimize(self.model, self.trainer.strategy.root_device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give the loss the class weights of the settings, which may have changed."""
        own = {key: value for key, value in self.state_dict().items() if key.startswith("loss.")}
        for name in {"state_dict", "current_model_state"} & checkpoint.keys():
            saved = checkpoint[name]
            restored = {
                key: saved[key]
                for key, value in own.items()
                if key != "loss.weight" and key in saved and saved[key].shape == value.shape
            }
            others = {k: v for k, v in saved.items() if not k.startswith("loss.")}
            checkpoint[name] = others | own | restored

    def forward(self, image: Tensor) -> Tensor:
        """Return the model's scores."""
        return self.model(image)

    def on_train_start(self) -> None:
        """Set a resumed optimiser's rates and decay from the current recipe, not the checkpoint."""
        optimizer, schedule = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        assert isinstance(optimizer, torch.optim.Optimizer)
        assert isinstance(schedule, LambdaLR)
        rate = rate_at(schedule.last_epoch, self.recipe, self.trainer.max_steps)
        fresh_groups = self._make_optimizer().param_groups
        for group, fresh in zip(optimizer.param_groups, fresh_groups, strict=True):
            group |= {key: value for key, value in fresh.items() if key != "params"}
            group |= {"initial_lr": fresh["lr"], "lr": fresh["lr"] * rate}
            for parameter in group["params"] if group.get("fused") else ():
                state = optimizer.state.get(parameter, {})
                if "step" in state:  # an optimiser that was not fused has it on the CPU
                    state["step"] = state["step"].to(parameter.device)
        schedule.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed dropout from the run's seed and the batch's number: a resumed run draws the same."""
        position = [self.seed, self.trainer.fit_loop.total_batch_idx, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(position).generate_state(1)[0]))

    def on_train_batch_end(self, *_: Any) -> None:
        """Let a callback that ends the run, such as a time limit, wait for the whole step."""
        self.to_stop |= self.trainer.should_stop
        batches = self.trainer.fit_loop.total_batch_idx + 1
        is_whole = batches % self.trainer.accumulate_grad_batches == 0
        self.trainer.should_stop = self.to_stop and is_whole

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        image, target = batch
        loss = self.loss(self.training_forward(image), target.long())
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Count a batch, large images in tiles; return its labels, for pictures."""
        image, target = batch
        size = image.shape[-2], image.shape[-1]
        prediction, loss = torch.empty_like(target), torch.zeros((), device=target.device)
        seen = (target != VOID).sum().clamp(min=1)
        for rows, columns in product(*(tiles(length, TILE, self.model) for length in size)):
            score = score_tile(self, self.model, image, rows, columns, size)
            part = target[:, rows, columns].long()
            prediction[:, rows, columns] = score.max(1).indices
            share: Tensor | float = 1.0  # of a mean over pixels
            if score.shape[-2:] != size and self.recipe.loss_reduction == "mean":
                share = (part != VOID).sum() / seen
            loss = loss + share * self.loss(score, part)
        self.confusion.update(prediction, target.long())
        # The mean over images; those that only fill up a rank's batches are ignored altogether.
        images = int((target != VOID).flatten(1).any(1).sum())
        self.log("val/loss", loss, batch_size=images, sync_dist=True)
        return {"prediction": prediction}

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole split, which are the same on every rank."""
        result = metrics_of(self.confusion.compute())
        self.confusion.reset()
        self.validation_confusion = result.confusion
        self.log("val/mean_iou", result.mean_iou, prog_bar=True)
        self.log("val/pixel_accuracy", result.pixel_accuracy)
        self.log("val/mean_accuracy", result.mean_accuracy)
        self.log("val/frequency_weighted_iou", result.frequency_weighted_iou)
        for name, iou in zip(self.classes, result.iou.tolist(), strict=True):
            if not math.isnan(iou):
                self.log(f"val/iou/{name}", iou)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the recipe's optimiser and its schedule over the run's steps."""
        optimizer = self._make_optimizer()
        schedule = make_schedule(optimizer, self.recipe, self.trainer.max_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _make_optimizer(self) -> torch.optim.Optimizer:
        clips = clips_gradients(self.trainer.gradient_clip_val, self.trainer.precision)
        assert self.recipe.lr is not None
        return make_optimizer(self.model, self.recipe, self.recipe.lr, fused=not clips)
