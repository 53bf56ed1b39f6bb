"""Validates a checkpoint as training does: `python validate_in_ranks.py SETTINGS.json`.

The settings: checkpoint, data (of DataConfig), devices, and the folder that every process leaves
the confusion matrix of the whole run in, as RANK.json.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from fcn.config import DataConfig, RecipeConfig
from fcn.data.datamodule import SegmentationData
from fcn.inference import checkpoint
from fcn.training.module import SegmentationModule
from fcn.training.run import quieten


class Judge(SegmentationModule):
    folder: Path

    def on_validation_epoch_end(self) -> None:
        confusion = self.confusion.compute().tolist()
        (self.folder / f"{self.global_rank}.json").write_text(json.dumps(confusion))
        super().on_validation_epoch_end()


def validate(settings: dict[str, Any]) -> None:
    quieten()
    recipe = RecipeConfig(name="test", max_steps=1, batch_size=4)  # validates two at a time
    judge = Judge(checkpoint.load(settings["checkpoint"]), recipe, 1e-3, 0, {})
    judge.folder = Path(settings["folder"])
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=settings["devices"],
        strategy="ddp" if settings["devices"] > 1 else "auto",
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = SegmentationData(DataConfig(**settings["data"]), recipe, 0)
    trainer.validate(judge, datamodule=data, verbose=False)


if __name__ == "__main__":
    validate(json.loads(Path(sys.argv[1]).read_text()))
