"""A training run: from its settings to the files it leaves."""

import inspect
import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import EMAWeightAveraging, LearningRateMonitor
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.table import Table

from fcn import checkpoint
from fcn.config import CONFIGS, ModelConfig, TrainConfig, flat_keys
from fcn.data.check import class_pixels, scan
from fcn.data.dataset import SegmentationDataset
from fcn.data.images import range_note
from fcn.data.layouts import division, seen_problem
from fcn.data.loaders import SegmentationData, check_shared_memory
from fcn.data.shapes import CLASSES as SHAPES
from fcn.device import InferenceModel, describe_machine
from fcn.errors import ConfigError, UserError, describe_failure
from fcn.hydra_versions import TRUSTED
from fcn.inference.evaluate import evaluate, evaluate_and_write, print_last_line, read_metrics
from fcn.models.fcn import FCN
from fcn.models.surgery import Report, fit_to_features
from fcn.output import locked, percent, write_json
from fcn.pictures import plots
from fcn.processes import Processes, launch
from fcn.targets import class_named, reason_of
from fcn.training import record
from fcn.training.callbacks import (
    AtStart,
    BestCheckpoint,
    DivergenceCheck,
    History,
    LastCheckpoint,
    Pictures,
    ProgressBar,
)
from fcn.training.interruption import AtomicCheckpoints, Interruption
from fcn.training.loss import balanced_weights, make_loss, rare_note
from fcn.training.module import SegmentationModule
from fcn.training.optim import warmup_note
from fcn.training.plan import Plan, check_combinations, resolve

MEASURED_IMAGES = 8  # training images on which the size of pretrained features is measured


def main(cfg: TrainConfig, folder: Path, console: Console) -> float | None:
    """Run the command train; see `train`."""
    return train(cfg, folder, console)


def train(cfg: TrainConfig, folder: Path, console: Console) -> float | None:
    """Train a model, or one after the other with `stages`, in as many processes as are asked for.

    Args:
        cfg: validated settings.
        folder: of the run.
        console: for progress and results.

    Returns:
        The mean IoU on the validation split, in 0..1; None in processes other than the first.

    Raises:
        UserError: the settings, the data or the weights make the run impossible.
    """
    hide_hints()
    with launch(cfg.trainer, training=True) as processes:
        cfg, folder = processes.share((cfg, folder))
        return (train_stages if cfg.stages else train_one)(cfg, folder, processes, console)


def train_one(
    cfg: TrainConfig, folder: Path, processes: Processes, console: Console
) -> float | None:
    """Train a model, evaluate its best checkpoint, and write what the run leaves; see `train`."""
    started = time.monotonic()
    plan = resolve(cfg, folder, processes, console)
    if note := warmup_note(plan.recipe, plan.length.max_steps):
        console.print(f"warning: {note}", style="yellow")
    with opened_folder(plan, processes):
        check_data(plan, processes, console)
        model, surgery = first_model(plan, console)
        module = make_module(plan, model, processes, console)
        run = make_trainer(plan, module, processes, console)
        print_start(plan, model, surgery, processes.world, console)
        run.at_start.do = partial(write_run_record, plan, model, processes)
        fit(plan, run, module, console)
        best = run.checkpoint_to_keep()
        if best is None or processes.rank > 0:
            return None
        model, metadata = save_best_model(plan, best, module)
        metrics = evaluate_best(plan, model, metadata, run.history, console)
        for logger in run.trainer.loggers:
            log_settings(logger, plan, metrics["mean_iou"])
        record.finish(folder)
        print_last_line(console, metrics, f"after {time.monotonic() - started:.0f} s", folder)
        return metrics["mean_iou"]


@contextmanager
def opened_folder(plan: Plan, processes: Processes) -> Iterator[None]:
    """Make the run's folder and hold it; another run, or a finished one, is an error."""
    if processes.rank > 0:
        yield
        return
    folder = plan.folder
    if plan.record is None:
        record.check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        yield


def check_data(plan: Plan, processes: Processes, console: Console) -> None:
    """Read one image and all masks; raise an error if they do not fit the settings."""
    image, _ = plan.train[0]
    if processes.rank == 0:
        sources = [pair.image for pair in plan.train.pairs]
        if note := range_note(sources, plan.train.info):
            console.print(f"warning: {note}", style="yellow")
        source, data = plan.weights.source, plan.settings.data
        if source and (problem := seen_problem(data, plan.val, source.about)):
            console.print(f"warning: model.init_from: {problem}", style="yellow")
        check_shared_memory(plan.recipe, image, plan.num_workers, plan.device, processes.world)
        if plan.scan:
            scan([plan.train, plan.val], console, training=True)
    processes.wait()


def first_model(plan: Plan, console: Console) -> tuple[FCN, Report | None]:
    """Build the model and give it its first weights, unless a checkpoint is resumed.

    Returns:
        The model, and what became of each tensor; None if the weights are random or resumed.
    """
    pl.seed_everything(plan.seed, verbose=False)
    model, weights = FCN(**plan.model), plan.weights
    if plan.freeze:
        model.backbone.freeze(plan.freeze)
    if plan.resume is not None:
        return model, None
    surgery = checkpoint.initialise(
        model, weights.source, weights.backbone, plan.train.classes, new_head=weights.new_head
    )
    if weights.source is not None:
        weights.source.weights.clear()  # the model has them now; the plan lives as long as the run
    if surgery and weights.fit_to_features:
        first = range(min(len(plan.train), MEASURED_IMAGES))
        fit_to_features(model, [plan.train[index][0] for index in first], surgery)
    if surgery and surgery.warning:
        console.print(f"warning: {surgery.source}: {surgery.warning}", style="yellow")
    return model, surgery


def make_module(
    plan: Plan, model: FCN, processes: Processes, console: Console
) -> SegmentationModule:
    """Return what Lightning trains: the model under its recipe, with its loss."""
    weights = plan.class_weights
    if weights == "balanced":
        classes = plan.train.classes
        counts = processes.share(class_pixels(plan.train, console) if processes.rank == 0 else [])
        weights = balanced_weights(counts)
        shown = (f"{name} {weight:.3g}" for name, weight in zip(classes, weights, strict=True))
        console.print(f"class weights: {', '.join(shown)}")
        if note := rare_note(weights, counts, classes):
            console.print(f"warning: {note}", style="yellow")
    weight = torch.tensor(weights, dtype=torch.float32) if weights else None
    loss = make_loss(plan.loss, plan.recipe.loss_reduction, weight)
    assert plan.recipe.lr is not None
    return SegmentationModule(
        model, plan.recipe, loss, plan.recipe.lr, plan.seed, describe(plan, model),
        compile=plan.compile,
    )  # fmt: skip


def describe(plan: Plan, model: FCN) -> dict[str, Any]:
    """Return what every checkpoint keeps: how to build its model, and how it was trained."""
    length, settings = plan.length, plan.settings
    return {
        "model": model.arguments,
        **checkpoint.info_metadata(plan.train.info),
        "data": {
            "name": settings.data.name,
            "train": plan.train.fingerprint(),
            "val": plan.val.fingerprint(),
            "division": division(settings.data),
        },
        "training": asdict(plan.recipe)
        | {"max_steps": length.max_steps, "accumulate": length.accumulate},
        "precision": plan.precision,
        "seed": plan.seed,
    }


@dataclass
class TrainerParts:
    """Lightning's Trainer, its data module, and the callbacks that the run reads."""

    trainer: pl.Trainer
    data: SegmentationData
    history: History
    interruption: Interruption
    at_start: AtStart
    best: BestCheckpoint | None  # None: the run keeps no checkpoints
    last: Path

    def checkpoint_to_keep(self) -> Path | None:
        """Return the checkpoint that becomes the model: the best, or the last if none is."""
        if self.best is None:
            return None
        if not self.best.best_model_path:  # nothing was validated
            self.trainer.save_checkpoint(self.last)
            return self.last
        return Path(self.best.best_model_path)


def make_trainer(
    plan: Plan, module: SegmentationModule, processes: Processes, console: Console
) -> TrainerParts:
    """Return Lightning's Trainer, and the callbacks that the run itself looks at."""
    data = SegmentationData(
        plan.train, plan.val, plan.recipe, plan.seed, plan.num_workers, plan.val_limit
    )
    folder = plan.folder / "checkpoints"
    history, at_start = History(console), AtStart()
    interruption = Interruption(folder / "last.ckpt", console, processes)
    log = plan.folder / "metrics.csv"
    if log.is_file() and processes.rank == 0:  # Lightning's logger would delete a resumed run's
        log.rename(log.with_suffix(f".{len(list(plan.folder.glob('metrics*.csv')))}.csv"))
    loggers = [_instantiate(entry, "logger", plan.folder) for entry in plan.loggers]
    own = {name: _instantiate(entry, "callbacks", plan.folder, name)
           for name, entry in plan.callbacks.items()}  # fmt: skip
    callbacks = list(own.values())
    callbacks += [
        at_start,
        history,
        DivergenceCheck(plan.train.classes, plan.precision, plan.folder, console),
        interruption,
        Pictures(plan.train.info),
    ]
    if loggers:
        callbacks.append(LearningRateMonitor("step"))
    if plan.recipe.ema_decay is not None:
        callbacks.append(EMAWeightAveraging(decay=plan.recipe.ema_decay))
    given = dict(plan.trainer)
    shows_bar = given.get("enable_progress_bar")
    given["enable_progress_bar"] = shows_bar is not False and console.is_terminal
    if given["enable_progress_bar"]:
        callbacks.append(ProgressBar(leave=False))
    best = None
    if not given.get("fast_dev_run") and given.get("enable_checkpointing") is not False:
        best = BestCheckpoint(folder)
        callbacks += [best, LastCheckpoint(folder)]  # the last knows the best so far
    defaults: dict[str, Any] = {"num_sanity_val_steps": 0, "enable_model_summary": False}
    try:
        trainer = pl.Trainer(
            **defaults | given,
            callbacks=callbacks,
            plugins=[AtomicCheckpoints()],
            default_root_dir=plan.folder,
            logger=loggers,
            use_distributed_sampler=False,  # the samplers of fcn.data share out by rank themselves
        )
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
    return TrainerParts(trainer, data, history, interruption, at_start, best, folder / "last.ckpt")


def _instantiate(entry: Mapping[str, Any], group: str, folder: Path, name: str = "") -> Any:
    """Return what a `_target_` names, working in the run's folder unless its settings say where.

    {folder} in its texts is the run's folder, too. Checkpoints of a callback go to a folder `name`.
    """
    place = str(folder.absolute())
    filled = {
        k: v.replace("{folder}", place) if isinstance(v, str) else v for k, v in entry.items()
    }
    try:
        known = inspect.signature(class_named(filled["_target_"])).parameters
        places = {"save_dir": folder, "dirpath": folder.absolute() / "checkpoints" / name}
        filled = {key: place for key, place in places.items() if key in known} | filled
        return instantiate(filled, **TRUSTED)
    except Exception as error:  # of whatever library it is
        raise ConfigError(f"{group}: {entry.get('_target_', entry)}: {reason_of(error)}") from error


def print_start(
    plan: Plan, model: FCN, surgery: Report | None, world: int, console: Console
) -> None:
    """Print what is about to be trained, on what, and where its weights come from."""
    chosen, recipe, info = plan.settings, plan.recipe, plan.train.info
    images = recipe.batch_size * plan.length.accumulate * world
    bands = f", bands {', '.join(map(str, info.bands))}" if info.bands else ""
    count = sum(p.numel() for p in model.parameters())
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    kernels = sum(p.numel() for n, p in model.named_parameters() if n.startswith("upscore"))
    source = f"resumed from {plan.resume}" if plan.resume else surgery and surgery.source
    changes = [f", {str(entry['_target_']).rpartition('.')[2]}" for entry in recipe.transforms]
    own, kind = chosen.loss._target_, chosen.loss.name.replace("_", " ")
    loss = f"loss {own}" if own else f"{kind}, {recipe.loss_reduction} over pixels"
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in {
        "model": f"{chosen.model.name}, backbone {chosen.backbone.name}, "
        f"padding {chosen.model.padding}",
        "upsampling": f"{chosen.upsampling._target_ or chosen.upsampling.name}, "
        f"{kernels:,} trainable parameters",
        "parameters": f"{count:,}" + (f", {frozen:,} of them frozen" if frozen else ""),
        "data": f"{chosen.data.title} in {chosen.data.root}: {len(plan.train)} training images, "
        f"{len(plan.val)} validation images, {len(info.classes)} classes{bands}",
        "recipe": f"{plan.length.max_steps} steps of {images} images, "
        f"{recipe.optimizer}, {loss}" + "".join(changes),
        "device": f"{plan.device}, precision {plan.precision}",
        "weights": source or "random",
    }.items():
        table.add_row(name, value)
    console.print(table)
    if surgery is not None:
        console.print(checkpoint.surgery_table(surgery))
    elif plan.record is None and info.classes != list(SHAPES):
        console.print(
            "note: a network for photographs learns far more from ImageNet weights: "
            "backbone=vgg16 recipe=finetune"
        )


def data_record(plan: Plan) -> dict[str, Any]:
    """Return what run.json keeps of both splits: it tells whether their images have changed."""
    splits = {"train": plan.train, "val": plan.val}
    return {
        key: {
            "name": split.name,
            "images": len(split),
            "ids_sha256": split.fingerprint(),
            "classes": split.classes,
        }
        for key, split in splits.items()
    }


def write_run_record(plan: Plan, model: FCN, processes: Processes) -> None:
    """Write run.json: what the run's numbers depend on."""
    if processes.rank > 0:
        return
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    content = record.launch_info(overrides) | {
        "data": data_record(plan),
        "machine": describe_machine(plan.device),
        "model": model.arguments,
        "config": asdict(plan.settings),
    }
    record.write_record(plan.folder, content)


def fit(plan: Plan, run: TrainerParts, module: SegmentationModule, console: Console) -> None:
    """Train to the end, or until a signal; what torch complains about becomes one line."""
    if plan.record:
        _continue_run(plan, run, console)
    try:
        with run.interruption:
            run.trainer.fit(module, datamodule=run.data, ckpt_path=plan.resume, weights_only=True)
    except UserError:
        raise
    except Exception as error:
        if (line := describe_failure(error)) is None:
            raise
        raise UserError(f"{line} (step {run.trainer.global_step + 1})") from error


def _continue_run(plan: Plan, run: TrainerParts, console: Console) -> None:
    """Say what differs from the run that is resumed; other validation images have a new best."""
    assert plan.record is not None
    changes = plan.record.changes(asdict(plan.settings))
    console.print(f"resuming {plan.record.folder} from {plan.record.checkpoint.name}")
    for key, (old, new) in changes.items():
        console.print(f"  {key}: {old} -> {new}")
    before, now = plan.record.data, data_record(plan)
    other_images = "trainer.limit_val_batches" in changes
    for key in now:
        old = now[key] | before.get(key, {})
        if old["classes"] != now[key]["classes"]:
            raise ConfigError(
                f"resume={plan.record.folder}: its data had the classes "
                f"{', '.join(old['classes'])}, but {now[key]['name']} has "
                f"{', '.join(now[key]['classes'])}; start a new run with model.init_from"
            )
        if old["ids_sha256"] == now[key]["ids_sha256"]:
            continue
        console.print(
            f"warning: the {key} images have changed: {old['images']} before, "
            f"{now[key]['images']} now; the run is no longer equal to one left alone",
            style="yellow",
        )
        other_images |= key == "val"
    best = plan.folder / "checkpoints" / "best.ckpt"
    if other_images and run.best is not None and best.is_file():
        run.best.score_again(_mean_iou(plan, run.data.val, best))
        console.print("the best checkpoint so far was validated again on the new images")


def _mean_iou(plan: Plan, val: SegmentationDataset, path: Path) -> float:
    """Return the mean IoU of a checkpoint on the images of validation."""
    model = InferenceModel(checkpoint.load(path), plan.device, plan.precision)
    quiet = Console(quiet=True)
    return evaluate(model, val, quiet, batch_size=plan.recipe.batch_size).scores.mean_iou


def save_best_model(
    plan: Plan, best: Path, module: SegmentationModule
) -> tuple[FCN, dict[str, Any]]:
    """Write model.safetensors, before anything that may still fail; return it and its metadata."""
    model, metadata = checkpoint.load(best), describe(plan, module.model)
    checkpoint.write_safetensors(plan.folder / "model.safetensors", model, metadata)
    return model, metadata


def evaluate_best(
    plan: Plan, model: FCN, metadata: dict[str, Any], history: History, console: Console
) -> dict[str, Any]:
    """Evaluate the best model, write the numbers and pictures; return the metrics.

    Raises:
        UserError: says that the model is there, and how to evaluate it again.
    """
    folder, settings = plan.folder, plan.settings
    try:
        if history.loss and history.mean_iou:
            curves = {"training loss": history.loss}, {"validation mean IoU": history.mean_iou}
            plots.curves(*curves).save(folder / "curves.png")
            write_json(folder / "history.json", history.state_dict())
        metrics = evaluate_and_write(
            InferenceModel(model, plan.device, plan.precision),
            plan.val,
            folder,
            console,
            data=settings.data.title,
            split=settings.data.val_split,
            batch_size=max(1, plan.recipe.batch_size // 2),  # no more memory than in validation
            num_workers=plan.num_workers,
        )
    except Exception as error:
        reason = describe_failure(error) or " ".join(str(error).split())
        raise UserError(
            f"the evaluation failed ({reason}), but {folder}/model.safetensors is there; "
            f"python scripts/evaluate.py checkpoint={folder} evaluates it"
        ) from error
    assert metrics is not None
    path = folder / "model.safetensors"
    checkpoint.write_safetensors(path, model.cpu(), metadata | {"metrics": metrics})
    return metrics


def log_settings(logger: Logger, plan: Plan, mean_iou: float) -> None:
    """Log the settings, and the final mean IoU as what runs are ranked by."""
    settings = {key: str(value) for key, value in flat_keys(asdict(plan.settings)).items()}
    if isinstance(logger, TensorBoardLogger):
        logger.log_hyperparams(settings, {"hp_metric": mean_iou})
    else:
        logger.log_hyperparams(settings)
        logger.log_metrics({"hp_metric": mean_iou})
    logger.finalize("success")


def hide_hints() -> None:
    """Hide Lightning's hints that do not concern a user of this project."""
    for name in ("pytorch_lightning", "lightning_fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*does not have many workers.*",  # their number is a setting with a sensible default
        r".*Checkpoint directory .* exists and is not empty.*",  # as it is in a resumed run
        r".*Experiment logs directory .* exists and is not empty.*",  # it is the run's folder
        r".*It is recommended to use `self.log.*sync_dist=True.*",  # the same on every rank
        r".*Found .* module\(s\) in eval mode.*",  # frozen batch norm
        r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",  # Lightning's own use of torch
    ):
        warnings.filterwarnings("ignore", message=message)


def train_stages(
    cfg: TrainConfig, folder: Path, processes: Processes, console: Console
) -> float | None:
    """Train each model of `cfg.stages` from the best checkpoint of the one before.

    FCN-32s, then 16s from it, then 8s (PAMI 2016, sec. 4.3). Each stage is a run of its own in
    folder/NAME. When it is resumed, finished stages are kept and the interrupted one continues.

    Returns:
        The mean IoU of the last stage, in 0..1; None in processes other than the first.

    Raises:
        UserError: as `train`; the stages are not in order.
    """
    stages = _stages(cfg, folder)
    if processes.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
        content = record.launch_info(overrides) | {"stages": cfg.stages, "config": asdict(cfg)}
        record.write_record(folder, content)
    for index, stage in enumerate(stages):
        own = folder / stage.model.name
        state = _is_done(own), any((own / "checkpoints").glob("*.ckpt"))
        done, started = processes.share(state)
        if done:
            continue
        console.rule(stage.model.name)
        if started:
            stage = replace(stage, model=replace(stage.model, init_from=None), resume="last")
        elif index:
            before = str(folder / stages[index - 1].model.name)
            stage = replace(stage, model=replace(stage.model, init_from=before))
        train_one(stage, own, processes, console)
        processes.wait()
    if processes.rank > 0:
        return None
    results = {
        stage.model.name: read_metrics(folder / stage.model.name / "metrics.json")
        for stage in stages
    }
    write_json(folder / "stages.json", results)
    record.finish(folder)
    _print_stages(cfg, results, console)
    return list(results.values())[-1]["mean_iou"]


def _is_done(stage: Path) -> bool:
    """Return True if a stage has been trained and evaluated."""
    return (stage / "metrics.json").is_file() and (stage / "model.safetensors").is_file()


def _stages(cfg: TrainConfig, folder: Path) -> list[TrainConfig]:
    """Return the settings of each stage, all of them checked before the first one trains."""
    models = [_stage_model(cfg.model, name) for name in cfg.stages]
    strides = [model.stride for model in models]
    if strides != sorted(set(strides), reverse=True):
        raise ConfigError(
            f"stages={cfg.stages}: must go from coarse to fine, such as [fcn32s,fcn16s,fcn8s]"
        )
    stages = [replace(cfg, model=model, stages=[], resume=None) for model in models]
    if cfg.resume is None:
        record.check_free(folder)
    for index, stage in enumerate(stages):
        previous = "the stage before" if index else stage.model.init_from
        check_combinations(replace(stage, model=replace(stage.model, init_from=previous)))
        own = folder / stage.model.name
        if _is_done(own) and record.settings_of(own)["trainer"] != stage.trainer:
            raise ConfigError(
                f"resume={folder}: {own.name} is finished and keeps its trainer settings; start a "
                "new run"
            )
    return stages


def _stage_model(base: ModelConfig, name: str) -> ModelConfig:
    """Return the model choice `name`, with the settings that all stages share."""
    paths = {path.stem: path for path in sorted((CONFIGS / "model").glob("*.yaml"))}
    if name not in paths:
        raise ConfigError(f"stages: no model {name}; choices: {', '.join(paths)}")
    choice: Any = OmegaConf.to_object(OmegaConf.merge(ModelConfig, OmegaConf.load(paths[name])))
    return replace(choice, padding=base.padding, dropout=base.dropout, init_from=base.init_from)


def _print_stages(cfg: TrainConfig, results: dict[str, dict[str, Any]], console: Console) -> None:
    source = cfg.model.init_from or cfg.backbone.weights or "random weights"
    table = Table(
        "stage", "from", "mean IoU %", "pixel acc. %", "mean acc. %", "f.w. IoU %", box=None
    )
    for name, metrics in results.items():
        keys = ("mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou")
        table.add_row(name, source, *(percent(metrics[key]) for key in keys))
        source = name
    console.print(table)
