"""Judges a checkpoint: `python scripts/evaluate.py checkpoint=PATH [data=...] [key=value ...]`."""

from pathlib import Path

from fcn.app import run
from fcn.config import ConfigError, EvaluateConfig


def main(cfg: EvaluateConfig) -> None:
    if cfg.checkpoint is None:
        raise ConfigError("give checkpoint=PATH, a .ckpt or .safetensors of this project")

    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console

    from fcn.data.datamodule import open_split
    from fcn.inference import checkpoint, report
    from fcn.inference.evaluation import computes_bf16, pick_device

    folder = Path(HydraConfig.get().runtime.output_dir)
    model = checkpoint.load(cfg.checkpoint)
    split = cfg.data.split or cfg.data.val_split
    files = open_split(cfg.data, split)
    classes = model.arguments["num_classes"]
    if len(files.classes) != classes:
        raise ConfigError(
            f"checkpoint={cfg.checkpoint} scores {classes} classes, but data={cfg.data.name} has "
            f"{len(files.classes)}; choose the data it was trained on"
        )
    device = pick_device(cfg.device)
    bf16 = computes_bf16(device) if cfg.precision == "auto" else cfg.precision == "bf16-mixed"
    console = Console()
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
