"""Judges a checkpoint: `python scripts/evaluate.py checkpoint=PATH [data=...] [key=value ...]`."""

from pathlib import Path

from fcn.app import run
from fcn.config import ConfigError, EvaluateConfig, check_evaluation


def main(cfg: EvaluateConfig) -> None:
    check_evaluation(cfg)
    assert cfg.checkpoint is not None

    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console

    from fcn.data.datamodule import open_split
    from fcn.inference import checkpoint, report
    from fcn.inference.evaluation import computes_bf16, pick_device

    folder = Path(HydraConfig.get().runtime.output_dir)
    trained = checkpoint.read(cfg.checkpoint)
    split = cfg.data.split or cfg.data.val_split
    files = open_split(cfg.data, split)
    labelled = files.labelled()
    if not labelled and not cfg.submission:
        raise ConfigError(
            f"{files.name}: no masks to judge by; submission=true writes the predictions, "
            "data.split= names another split"
        )
    if trained.classes != files.classes:
        raise ConfigError(
            f"checkpoint={cfg.checkpoint} scores {', '.join(trained.classes)}; data={cfg.data.name}"
            f" has {', '.join(files.classes)}; choose the data it was trained on, or data.classes"
        )
    device = pick_device(cfg.device)
    wanted = trained.about.get("precision", "") if cfg.precision == "auto" else cfg.precision
    bf16 = wanted == "bf16-mixed" and (cfg.precision != "auto" or computes_bf16(device))
    console, model = Console(), trained.model().to(device)
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
        )
        report.print_last_line(console, metrics, f"from {cfg.checkpoint}", folder)


if __name__ == "__main__":
    run("evaluate", main)
