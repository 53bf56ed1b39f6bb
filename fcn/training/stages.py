"""Staged training: FCN-32s, then 16s from it, then 8s (PAMI 2016, sec. 4.3)."""

from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from fcn.checks.training import check
from fcn.config import REPOSITORY, ConfigError, ModelConfig, TrainConfig
from fcn.inference.evaluation import read_metrics, write_json
from fcn.inference.report import percent
from fcn.training.run import refuse_overwriting, train
from fcn.training.trainer import process_rank


def train_stages(cfg: TrainConfig, folder: Path, console: Console) -> None:
    """Trains each model of `cfg.stages` from the last one's best checkpoint.

    Each stage is a run of its own in `folder/NAME`; a stage with a metrics.json is done. With
    `cfg.resume`, done stages are kept and the one that was interrupted goes on. Ends with a table
    of the stages, also in `folder/stages.json`.
    Raises: UserError: as `train` does; or a folder that holds stages, without `cfg.resume`.
    """
    models = [stage_model(cfg.model, name) for name in cfg.stages]
    if cfg.resume not in (None, "last"):
        raise ConfigError("stages go on with resume=last hydra.run.dir=FOLDER, not with a path")
    strides = [model.stride for model in models]
    if strides != sorted(set(strides), reverse=True):
        raise ConfigError(
            "stages go from coarse to fine, each stride once, such as [fcn32s,fcn16s,fcn8s]; got "
            f"[{','.join(cfg.stages)}]"
        )
    for model in models:  # all that can be refused is refused before the first stage trains
        later = model is not models[0]
        coarser = replace(model, init_from="coarser") if later and not cfg.resume else model
        check(replace(cfg, model=coarser))
        if cfg.resume is None and process_rank() == 0:
            refuse_overwriting(None, folder / model.name)
    rows = []
    for previous, model in zip([None, *models], models, strict=False):
        own = folder / model.name
        if previous is not None:
            model.init_from = str(folder / previous.name / "checkpoints" / "best.ckpt")
        started = any((own / "checkpoints").glob("*.ckpt"))
        if not (own / "model.safetensors").is_file():  # the last thing that a run writes
            console.rule(model.name)
            resume = "last" if started else None
            if started:
                model.init_from = None  # a run goes on with its own weights
            train(replace(cfg, model=model, resume=resume, stages=[]), own, console)
        if (own / "metrics.json").is_file():  # the first rank writes it; the others have no table
            rows.append((model, read_metrics(own / "metrics.json")))
    if len(rows) == len(models):
        write_json(folder / "stages.json", {model.name: metrics for model, metrics in rows})
        console.rule("stages")
        source = cfg.model.init_from or cfg.backbone.weights or "random weights"
        console.print(_table(rows, source))


def stage_model(base: ModelConfig, name: str) -> ModelConfig:
    """The model choice `name`, with the settings that all stages share taken from `base`."""
    paths = {p.stem: p for p in sorted((REPOSITORY / "configs" / "model").glob("*.yaml"))}
    if name not in paths:
        raise ConfigError(f"stages: no model {name}; choices: {', '.join(paths)}")
    choice = OmegaConf.to_object(OmegaConf.merge(ModelConfig, OmegaConf.load(paths[name])))
    assert isinstance(choice, ModelConfig)
    return replace(choice, padding=base.padding, dropout=base.dropout, init_from=base.init_from)


def _table(rows: list[tuple[ModelConfig, dict]], source: str) -> Table:
    table = Table("stage", "from", "mean IoU", "pixel acc.", "mean acc.", "f.w. IoU", box=None)
    for model, metrics in rows:
        numbers = ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou")
        table.add_row(model.name, source, *(percent(metrics[number]) for number in numbers))
        source = model.name
    return table
