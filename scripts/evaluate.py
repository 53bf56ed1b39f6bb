"""Judges a checkpoint: `python scripts/evaluate.py checkpoint=PATH [data=...] [key=value ...]`."""

from pathlib import Path

from fcn.app import run
from fcn.config import ConfigError, EvaluateConfig, check_inference


def main(cfg: EvaluateConfig) -> None:
    check_inference(cfg)
    assert cfg.checkpoint is not None

    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console

    from fcn.data.datamodule import open_split
    from fcn.inference import checkpoint, report
    from fcn.inference.evaluation import pick_device, uses_bf16

    folder = Path(HydraConfig.get().runtime.output_dir)
    trained = checkpoint.read(cfg.checkpoint)
    split = cfg.data.split or cfg.data.val_split
    files = open_split(cfg.data, split)
    if trained.classes != files.classes:
        raise ConfigError(
            f"checkpoint={cfg.checkpoint} scores {', '.join(trained.classes)}; data={cfg.data.name}"
            f" has {', '.join(files.classes)}; choose the data it was trained on, or data.classes"
        )
    device = pick_device(cfg.device)
    console = Console()
    metrics = report.judge(
        trained.model(),
        files,
        folder,
        console,
        data=cfg.data.name,
        split=split,
        device=device,
        bf16=uses_bf16(cfg.precision, trained.about, device),
        batch_size=cfg.batch_size,
    )
    report.print_last_line(console, metrics, f"from {cfg.checkpoint}", folder)


if __name__ == "__main__":
    run("evaluate", main)
