"""Staged training: FCN-32s, then 16s from it, then 8s (PAMI 2016, sec. 4.3)."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from fcn.config import CONFIGS, ModelConfig, TrainConfig
from fcn.errors import ConfigError
from fcn.inference.evaluate import read_metrics
from fcn.output import locked, percent, write_json, write_settings
from fcn.processes import Processes
from fcn.training import record
from fcn.training.plan import check_combinations

TrainOne = Callable[[TrainConfig, Path, Processes, Console, Callable[[], None]], float | None]


def train_stages(
    cfg: TrainConfig,
    folder: Path,
    processes: Processes,
    console: Console,
    train_one: TrainOne,
) -> float | None:
    """Train each model of `cfg.stages` from the best checkpoint of the one before.

    Each stage is a run of its own in folder/NAME, which `train_one` trains. When it is resumed,
    finished stages are kept and the interrupted one continues.

    Returns:
        The mean IoU of the last stage, in 0..1; None in processes other than the first.

    Raises:
        UserError: as `train`; the stages are not in order.
    """
    stages, first = _stages(cfg, folder), processes.rank == 0
    if first:
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) if first else nullcontext():
        _train_all(stages, cfg, folder, processes, console, train_one)
        if not first:
            return None
        names = [stage.model.name for stage in stages]
        results = {name: read_metrics(folder / name / "metrics.json") for name in names}
        write_json(folder / "stages.json", results)
        record.finish(folder)
    _print_stages(cfg, results, console)
    return results[names[-1]]["mean_iou"]


def _train_all(
    stages: Sequence[TrainConfig],
    cfg: TrainConfig,
    folder: Path,
    processes: Processes,
    console: Console,
    train_one: TrainOne,
) -> None:
    """Train the stages that are not done; the run is recorded once the first of them has begun."""
    recorded = processes.rank > 0

    def record_once() -> None:
        nonlocal recorded
        if not recorded:
            if cfg.resume is None:
                write_settings(asdict(cfg), folder)
            content = {"stages": cfg.stages, "config": asdict(cfg)}
            record.write_record(folder, content, resumed=cfg.resume is not None)
        recorded = True

    before = cfg.model.init_from
    for stage in stages:
        own = folder / stage.model.name
        state = _is_done(own), any((own / "checkpoints").glob("*.ckpt"))
        done, started = processes.broadcast(state)
        if not done:
            console.rule(stage.model.name)
            resume = "last" if started else None
            stage = replace(stage, model=replace(stage.model, init_from=before), resume=resume)
            train_one(stage, own, processes, console, record_once)
            processes.barrier()
        before = str(own)


def _is_done(stage: Path) -> bool:
    """Return True if a stage has been trained and evaluated."""
    return (stage / "metrics.json").is_file() and (stage / "model.safetensors").is_file()


def _stages(cfg: TrainConfig, folder: Path) -> list[TrainConfig]:
    """Return the settings of each stage, all of them checked before the first one trains."""
    if cfg.model.skip_scales:
        raise ConfigError(
            f"model.skip_scales={cfg.model.skip_scales} is for a network that is trained at once; "
            "leave it out, or leave out stages"
        )
    if cfg.trainer.get("fast_dev_run") or cfg.trainer.get("enable_checkpointing") is False:
        raise ConfigError(
            "each of stages= starts from a checkpoint of the one before: leave out "
            "trainer.fast_dev_run and trainer.enable_checkpointing=false; try one stage alone, "
            f"with model={cfg.stages[0]} in place of stages="
        )
    models = [_stage_model(cfg.model, name) for name in cfg.stages]
    strides = [model.stride for model in models]
    if strides != sorted(set(strides), reverse=True):
        raise ConfigError(
            f"stages={cfg.stages}: must go from coarse to fine, such as [fcn32s,fcn16s,fcn8s]"
        )
    stages = [replace(cfg, model=model, stages=[], resume=None) for model in models]
    if cfg.resume is None:
        record.check_free(folder)
    else:
        record.record_of(folder, folder).check_unchanged(asdict(cfg))
    for index, stage in enumerate(stages):
        previous = "the stage before" if index else stage.model.init_from
        check_combinations(replace(stage, model=replace(stage.model, init_from=previous)))
        own = folder / stage.model.name
        if _is_done(own):
            changed = record.record_of(own, own).changes(asdict(stage))
            arguments = [key for key in changed if key.startswith("trainer.")]
            if late := [key for key in arguments if not key.startswith(record.WHERE)]:
                raise ConfigError(
                    f"resume={folder}: {own.name} is finished, and {', '.join(late)} would change "
                    "it; start a new run"
                )
    return stages


def _stage_model(base: ModelConfig, name: str) -> ModelConfig:
    """Return the model choice `name`, with the settings that all stages share."""
    paths = {path.stem: path for path in sorted((CONFIGS / "model").glob("*.yaml"))}
    if name not in paths:
        raise ConfigError(f"stages: no model {name}; choices: {', '.join(paths)}")
    choice: Any = OmegaConf.to_object(OmegaConf.merge(ModelConfig, OmegaConf.load(paths[name])))
    return replace(base, stride=choice.stride, skip_scales=choice.skip_scales)


def _print_stages(cfg: TrainConfig, results: dict[str, dict[str, Any]], console: Console) -> None:
    """Print the metrics of every stage, and what it started from."""
    keys = ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou")
    heads = ("stage", "from", "mean IoU %", "pixel acc. %", "mean acc. %", "f.w. IoU %")
    table = Table(*heads, box=None)
    source = cfg.model.init_from or cfg.backbone.weights or "random weights"
    for name, metrics in results.items():
        table.add_row(name, source, *(percent(metrics[key]) for key in keys))
        source = name
    console.print(table)
