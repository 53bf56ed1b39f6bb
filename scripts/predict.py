"""Segments images: `python scripts/predict.py checkpoint=PATH input=FOLDER output=FOLDER`."""

import sys
import time
from pathlib import Path

from fcn.app import run
from fcn.checks.scripts import check_inference
from fcn.config import PredictConfig


def main(cfg: PredictConfig) -> None:
    check_inference(cfg)
    assert cfg.checkpoint is not None
    assert cfg.input is not None
    assert cfg.output is not None

    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    from fcn.data.reading import DataError
    from fcn.inference.checkpoint import sha256
    from fcn.inference.jobs import find_images, is_done, plan
    from fcn.inference.predictions import predict
    from fcn.inference.predictor import Predictor

    console, output = Console(markup=False), Path(cfg.output)
    jobs = plan(
        find_images(cfg.input, output, sys.stdin),
        output,
        overlays=cfg.overlays,
        probabilities=cfg.probabilities,
    )
    predictor = Predictor(
        cfg.checkpoint,
        cfg.device,
        precision=cfg.precision,
        tile=cfg.tile,
        flip=cfg.flip,
        scales=cfg.scales,
    )
    stamp = {
        "checkpoint": sha256(Path(cfg.checkpoint)),
        "precision": "bf16-mixed" if predictor.bf16 else "32-true",
        "flip": cfg.flip,
        "scales": cfg.scales,
    }
    todo = {job for job in jobs if cfg.overwrite or not is_done(job, stamp)}
    start, failed = time.perf_counter(), 0
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("images", total=len(todo))
        for _, error in predict(predictor, jobs, todo, stamp, cfg.batch_size) if todo else ():
            if error is not None:
                failed += 1
                console.print(str(error), highlight=False, soft_wrap=True)
            progress.advance(task)
    made = len(todo) - failed
    before = f", {len(jobs) - len(todo)} there before" if len(jobs) > len(todo) else ""
    rate = f"; {made / (time.perf_counter() - start):.1f} images per second" if made else ""
    console.print(
        f"{made} images segmented{before}; masks in {output}{rate}",
        highlight=False,
        soft_wrap=True,
    )
    if failed:
        raise DataError(f"{failed} of {len(jobs)} images could not be read; they are named above")


if __name__ == "__main__":
    run("predict", main)
