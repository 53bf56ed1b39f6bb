"""Judges a checkpoint: `python scripts/evaluate.py checkpoint=PATH [data=...] [key=value ...]`."""

from pathlib import Path

from fcn.app import run
from fcn.checks.scripts import check_inference
from fcn.config import ConfigError, EvaluateConfig


def main(cfg: EvaluateConfig) -> None:
    check_inference(cfg)
    assert cfg.checkpoint is not None

    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console

    from fcn.data.datamodule import open_split
    from fcn.data.official import fetch
    from fcn.inference import checkpoint, report
    from fcn.inference.evaluation import pick_device, ready, uses_bf16

    folder = Path(HydraConfig.get().runtime.output_dir)
    trained = checkpoint.read(cfg.checkpoint)
    console = Console(markup=False)
    if cfg.data.download:
        fetch(cfg.data, console)
    split = cfg.data.split or cfg.data.val_split
    files = open_split(cfg.data, split)
    labelled = files.labelled()
    if not labelled and not cfg.submission:
        raise ConfigError(
            f"{files.name}: no masks to judge by; submission=true writes the predictions, "
            "data.split= names another split"
        )
    trained.check_classes(files.classes, cfg.data.name)
    device = pick_device(cfg.device)
    bf16 = uses_bf16(cfg.precision, trained.about, device)
    model = trained.model()
    ready(model, device, bf16)
    if cfg.submission:
        year = Path(cfg.data.folder).name
        report.submit(
            model, files, folder, console, data=year, split=split, device=device, bf16=bf16
        )
    if labelled:
        metrics = report.judge(
            model,
            files,
            folder,
            console,
            data=cfg.data.name,
            split=split,
            device=device,
            bf16=bf16,
            batch_size=cfg.batch_size,
            num_workers=cfg.data.num_workers,
        )
        report.print_last_line(console, metrics, f"from {cfg.checkpoint}", folder)


if __name__ == "__main__":
    run("evaluate", main)
