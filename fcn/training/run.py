"""A training run: from its settings to the files it leaves."""

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, LambdaCallback, LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.table import Table

from fcn import checkpoint
from fcn.config import TrainConfig, flat_keys
from fcn.data.check import class_pixels, scan
from fcn.data.images import range_note
from fcn.data.layouts import overlap_with_training, split_settings
from fcn.data.loaders import (
    SameSizeBatches,
    SegmentationData,
    check_shared_memory,
    validation_batch_size,
)
from fcn.data.shapes import CLASSES as SHAPES
from fcn.device import InferenceModel, describe_machine
from fcn.errors import ConfigError, UserError, describe_failure
from fcn.inference.evaluate import evaluate, evaluate_and_write, print_last_line
from fcn.models.fcn import FCN
from fcn.models.surgery import Report, fit_to_features
from fcn.output import locked, warn, write_json, write_settings
from fcn.pictures import plots
from fcn.processes import Processes, launch
from fcn.targets import build
from fcn.training import record
from fcn.training.callbacks import (
    AveragedWeights,
    BestCheckpoint,
    DivergenceCheck,
    History,
    LastCheckpoint,
    PictureLogger,
    ProgressBar,
)
from fcn.training.interruption import AtomicCheckpoints, Interruption
from fcn.training.loss import balanced_weights, make_loss, rare_note
from fcn.training.module import SegmentationModule
from fcn.training.optim import warmup_note
from fcn.training.plan import Plan, resolve
from fcn.training.stages import train_stages

MEASURED_IMAGES = 8  # training images on which the size of pretrained features is measured


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
        cfg, folder = processes.broadcast((cfg, folder))
        if cfg.stages:
            return train_stages(cfg, folder, processes, console, train_one)
        return train_one(cfg, folder, processes, console)


main = train  # of the command


def train_one(
    cfg: TrainConfig,
    folder: Path,
    processes: Processes,
    console: Console,
    on_start: Callable[[], None] = lambda: None,
) -> float | None:
    """Train a model, evaluate its best checkpoint, and write what the run leaves; see `train`.

    `on_start` is called when training begins: whatever could refuse the settings has passed.
    """
    started = time.monotonic()
    plan = resolve(cfg, folder, processes, console)
    with opened_folder(plan):
        check_data(plan, console)
        model, report = initial_model(plan, console)
        module = make_module(plan, model, console)
        run = make_trainer(plan, module, console, on_start)
        print_start(plan, model, report, console)
        with finished_loggers(run.trainer.loggers):
            fit(plan, run, module, console)
            best = run.checkpoint_to_keep()
            if best is None:
                console.print("trained; no checkpoint is kept, and nothing evaluated")
            if best is None or processes.rank > 0:
                return None
            model = checkpoint.load(best)
            # Before anything that may still fail.
            checkpoint.write_safetensors(folder / "model.safetensors", model, module.metadata)
            metrics = evaluate_best(plan, model, module.metadata, run.history, console)
            for logger in run.trainer.loggers:
                log_settings(logger, plan, metrics["mean_iou"])
        record.finish(folder)
        print_last_line(console, metrics, f"after {time.monotonic() - started:.0f} s", folder)
        return metrics["mean_iou"]


@contextmanager
def opened_folder(plan: Plan) -> Iterator[None]:
    """Make the run's folder and hold it; another run, or a finished one, is an error."""
    if plan.processes.rank > 0:
        yield
        return
    if plan.record is None:
        record.check_free(plan.folder)
    plan.folder.mkdir(parents=True, exist_ok=True)
    with locked(plan.folder):
        if plan.record is None:
            write_settings(asdict(plan.settings), plan.folder)
        yield


@contextmanager
def finished_loggers(loggers: Sequence[Logger]) -> Iterator[None]:
    """End a run of Weights & Biases: the next run of this process would be logged into it."""
    code = 1
    try:
        yield
        code = 0
    finally:
        if loggers and (wandb := sys.modules.get("wandb")):
            wandb.finish(exit_code=code)


def check_data(plan: Plan, console: Console) -> None:
    """Read one image and all masks; raise an error if they do not fit the settings."""
    image, _ = plan.train[0]
    if plan.processes.rank == 0:
        warn(console, range_note([pair.image for pair in plan.train.pairs], plan.train.info))
        if plan.source:
            problem = overlap_with_training(plan.settings.data, plan.val, plan.source.metadata)
            warn(console, problem and f"model.init_from: {problem}")
        check_shared_memory(plan.recipe, image, plan.num_workers, plan.device, plan.processes.world)
        if plan.scan:
            scan([plan.train, plan.val], console, training=True)
    plan.processes.barrier()


def initial_model(plan: Plan, console: Console) -> tuple[FCN, Report | None]:
    """Build the model and give it its first weights, unless a checkpoint is resumed.

    Returns:
        The model, and what became of each tensor; None if the weights are random or resumed.
    """
    pl.seed_everything(plan.seed, verbose=False)
    model = FCN(**plan.model)
    if plan.freeze:
        model.backbone.freeze(plan.freeze)
    if plan.resume is not None:
        return model, None
    report = checkpoint.initialise(
        model,
        plan.source,
        plan.weights,
        plan.train.classes,
        bands=plan.train.info.bands,
        new_head=plan.new_head,
    )
    if plan.source is not None:
        plan.source.weights.clear()  # the model has them now; the plan lives as long as the run
    if report and plan.recipe.fit_to_features:
        first = range(min(len(plan.train), MEASURED_IMAGES))
        fit_to_features(model, [plan.train[index][0] for index in first], report)
    if report and report.warning:
        warn(console, f"{report.source}: {report.warning}")
    return model, report


def make_module(plan: Plan, model: FCN, console: Console) -> SegmentationModule:
    """Return what Lightning trains: the model under its recipe, with its loss."""
    weights = plan.class_weights
    if weights == "balanced":
        first, classes = plan.processes.rank == 0, plan.train.classes
        counts = plan.processes.broadcast(class_pixels(plan.train, console) if first else [])
        weights = balanced_weights(counts)
        shown = (f"{name} {weight:.3g}" for name, weight in zip(classes, weights, strict=True))
        console.print(f"class weights: {', '.join(shown)}")
        warn(console, rare_note(weights, counts, classes))
    weight = torch.tensor(weights, dtype=torch.float32) if weights else None
    loss = make_loss(plan.loss, plan.recipe.loss_reduction, weight)
    metadata = checkpoint_metadata(plan, model)
    return SegmentationModule(model, plan.recipe, loss, plan.seed, metadata, compile=plan.compile)


def checkpoint_metadata(plan: Plan, model: FCN) -> dict[str, Any]:
    """Return what every checkpoint keeps: how to build its model, and how it was trained."""
    steps = {"max_steps": plan.max_steps, "accumulate": plan.trainer["accumulate_grad_batches"]}
    return {
        "model": model.arguments,
        **checkpoint.info_metadata(plan.train.info),
        "data": {
            "name": plan.settings.data.name,
            "train": plan.train.fingerprint(),
            "val": plan.val.fingerprint(),
            "division": split_settings(plan.settings.data),
        },
        "training": asdict(plan.recipe) | steps,
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
    best: BestCheckpoint | None  # None: the run keeps no checkpoints
    last: Path
    write_record: Callable[[], None]

    def checkpoint_to_keep(self) -> Path | None:
        """Return the best checkpoint; if nothing was validated, save the last one and return it."""
        if self.best is None:
            return None
        if not self.best.best_model_path:  # nothing was validated
            self.trainer.save_checkpoint(self.last)
            return self.last
        return Path(self.best.best_model_path)


def make_trainer(
    plan: Plan,
    module: SegmentationModule,
    console: Console,
    on_start: Callable[[], None] = lambda: None,
) -> TrainerParts:
    """Build Lightning's Trainer and the callbacks; `on_start` is called when training begins."""
    folder, recipe = plan.folder / "checkpoints", plan.recipe
    data = SegmentationData(
        plan.train, plan.val, recipe, plan.seed, plan.num_workers, plan.val_limit
    )

    def write_record() -> None:
        write_run_record(plan, module.model)
        on_start()

    loggers = [_built(entry, "logger", plan.folder) for entry in plan.loggers]
    history = History(console)
    interruption = Interruption(folder / "last.ckpt", console, plan.processes)
    callbacks: list[Callback] = [
        *(_built(own, "callbacks", plan.folder, name) for name, own in plan.callbacks.items()),
        # Once a resumed run's state has been loaded.
        LambdaCallback(on_train_start=lambda *_: write_record()),
        history,
        DivergenceCheck(plan.train.classes, plan.precision, plan.folder, console),
        interruption,
        PictureLogger(plan.train.info),
    ]
    if loggers:
        callbacks.append(LearningRateMonitor("step"))
    if recipe.ema_decay is not None:
        callbacks.append(AveragedWeights(recipe.ema_decay))
    given = {"num_sanity_val_steps": 0, "enable_model_summary": False, **plan.trainer}
    shows_bar = given.get("enable_progress_bar") is not False and console.is_terminal
    given["enable_progress_bar"] = shows_bar
    if shows_bar:
        callbacks.append(ProgressBar(leave=False))
    best = None
    if not given.get("fast_dev_run") and given.get("enable_checkpointing") is not False:
        best = BestCheckpoint(folder)
        callbacks += [best, LastCheckpoint(folder)]  # the last knows the best so far
    try:
        trainer = pl.Trainer(
            **given,
            callbacks=callbacks,
            plugins=[AtomicCheckpoints()],
            default_root_dir=plan.folder,
            logger=loggers,
            use_distributed_sampler=False,  # the samplers of fcn.data share out by rank themselves
        )
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
    last = folder / "last.ckpt"
    return TrainerParts(trainer, data, history, interruption, best, last, write_record)


def _built(entry: Mapping[str, Any], group: str, folder: Path, name: str = "") -> Any:
    """Return what a `_target_` names, working in the run's folder unless its settings say where.

    {folder} in its texts is the run's folder, too. Checkpoints of a callback go to a folder `name`.
    """
    folder = folder.absolute()
    places = {"save_dir": folder, "dirpath": folder / "checkpoints" / name}

    def complete(parameters: set[str], given: dict[str, Any]) -> dict[str, Any]:
        filled = {key: place for key, place in places.items() if key in parameters} | given
        return {
            key: value.replace("{folder}", str(folder)) if isinstance(value, str) else value
            for key, value in filled.items()
        }

    try:
        return build(entry, complete)
    except ConfigError as error:
        raise ConfigError(f"{group}: {error}") from error


def print_start(plan: Plan, model: FCN, report: Report | None, console: Console) -> None:
    """Print what is about to be trained, on what, and where its weights come from."""
    chosen, recipe, info = plan.settings, plan.recipe, plan.train.info
    images = recipe.batch_size * plan.trainer["accumulate_grad_batches"] * plan.processes.world
    bands = f", bands {', '.join(map(str, info.bands))}" if info.bands else ""
    parameters = sum(p.numel() for p in model.parameters())
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    kernels = sum(p.numel() for n, p in model.named_parameters() if n.startswith("upscore"))
    source = f"resumed from {plan.resume}" if plan.resume else report and report.source
    changes = [f", {str(entry['_target_']).rpartition('.')[2]}" for entry in recipe.transforms]
    loss = f"loss {chosen.loss._target_ or chosen.loss.name}"
    if chosen.loss._target_ is None and chosen.loss.name == "cross_entropy":
        loss = f"cross entropy, {recipe.loss_reduction} over pixels"
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in {
        "model": f"{chosen.model.name}, backbone {chosen.backbone.name}, "
        f"padding {chosen.model.padding}",
        "upsampling": f"{chosen.upsampling._target_ or chosen.upsampling.name}, "
        f"{kernels:,} trainable parameters",
        "parameters": f"{parameters:,}" + (f", {frozen:,} of them frozen" if frozen else ""),
        "data": f"{chosen.data.title} in {chosen.data.root}: {len(plan.train)} training images, "
        f"{len(plan.val)} validation images, {len(info.classes)} classes{bands}",
        "recipe": f"{plan.max_steps} steps of {images} image{'s' * (images > 1)}, "
        f"{recipe.optimizer}, {loss}" + "".join(changes),
        "device": f"{plan.device}, precision {plan.precision}",
        "weights": source or "random",
    }.items():
        table.add_row(name, value)
    console.print(table)
    if not plan.trainer.get("fast_dev_run"):
        warn(console, warmup_note(recipe, plan.max_steps))
    if report is not None:
        console.print(checkpoint.surgery_table(report))
    elif plan.record is None and info.classes != list(SHAPES):
        console.print(
            "note: photographs are learned far better from ImageNet weights: backbone=vgg16 "
            "recipe=finetune"
        )


def data_record(plan: Plan) -> dict[str, Any]:
    """Return what run.json keeps of both splits: it tells whether their images have changed."""
    return {
        key: {
            "name": split.name,
            "images": len(split),
            "ids_sha256": split.fingerprint(),
            "classes": split.classes,
            "bands": split.info.bands,
            "value_range": split.info.value_range,
            "ignore_index": split.info.ignore_index,
        }
        for key, split in (("train", plan.train), ("val", plan.val))
    }


def write_run_record(plan: Plan, model: FCN) -> None:
    """Write run.json: what the run's numbers depend on."""
    if plan.processes.rank == 0:
        content = {
            "data": data_record(plan),
            "machine": describe_machine(plan.device),
            "processes": plan.processes.world,
            "model": model.arguments,
            "config": asdict(plan.settings),
        }
        record.write_record(plan.folder, content, resumed=plan.record is not None)


def fit(plan: Plan, run: TrainerParts, module: SegmentationModule, console: Console) -> None:
    """Train to the end, or until a signal; known errors of torch become one line."""
    if plan.record:
        _continue_run(plan, plan.record, run, console)
    if plan.processes.rank == 0:
        keep_logs(run.trainer.loggers)
    try:
        with run.interruption:
            run.trainer.fit(module, datamodule=run.data, ckpt_path=plan.resume, weights_only=True)
    except UserError:
        raise
    except MisconfigurationException as error:  # of a callback
        raise ConfigError(f"trainer: {' '.join(str(error).split())}") from error
    except Exception as error:
        if (line := describe_failure(error)) is None:
            raise
        raise UserError(f"{line} (step {run.trainer.global_step + 1})") from error


def keep_logs(loggers: Sequence[Logger]) -> None:
    """Rename CSV logs that are there: Lightning's logger would delete them."""
    for logger in loggers:
        log = Path(logger.log_dir or "", "metrics.csv")
        if isinstance(logger, CSVLogger) and log.is_file():
            names = (log.with_suffix(f".{number}.csv") for number in count(1))
            log.rename(next(name for name in names if not name.exists()))


def _continue_run(plan: Plan, before: record.Record, run: TrainerParts, console: Console) -> None:
    """Print what changed since the resumed run; on other validation images the best starts anew."""
    console.print(f"resuming {before.folder} from {before.checkpoint.name}")
    changes = before.changes(asdict(plan.settings))
    for key, (old, new) in changes.items():
        console.print(f"  {key}: {old} -> {new}")
    is_done = record.step_of(before.checkpoint) >= plan.max_steps
    late = [key for key in changes if not key.startswith(record.WHERE)]
    if is_done and late:
        raise ConfigError(
            f"resume={before.folder}: its last step is done, so {', '.join(late)} would change "
            "nothing; trainer.max_steps=N trains further, and evaluate.py evaluates otherwise"
        )
    world = plan.processes.world
    if before.processes not in (None, world):
        warn(
            console,
            f"processes: {before.processes} before, {world} now: the images of a step and the "
            f"steps of an epoch change; the run ends after {plan.max_steps} steps",
        )
    val_changed = _print_data_changes(plan, before, console)
    best, limit = plan.folder / "checkpoints" / "best.ckpt", plan.trainer.get("limit_val_batches")
    anew = val_changed or not changes.keys().isdisjoint(record.VALIDATION)
    batches_differ = "recipe.batch_size" in changes or before.processes not in (None, world)
    anew = anew or (limit is not None and batches_differ)
    if anew and limit != 0 and run.best is not None and best.is_file():
        run.best.scored_again = _mean_iou(plan, run, best)
        console.print("the best checkpoint so far was validated again")
    if is_done:  # Lightning calls no callback then
        run.write_record()
        console.print("nothing to train: its last step is done; trainer.max_steps=N trains further")
    _continue_stopping(run.trainer, console, anew=anew)


def _print_data_changes(plan: Plan, before: record.Record, console: Console) -> bool:
    """Print how the data of a resumed run have changed; return True if its best needs validating.

    That is so if the validation images are others, or if pixels or labels mean something else.
    """
    changed = False
    for key, now in data_record(plan).items():
        old = now | before.data.get(key, {})
        for name in ("value_range", "ignore_index"):
            if old[name] != now[name]:
                changed = True
                console.print(f"  {name} of the {key} images: {old[name]} -> {now[name]}")
        if old["ids_sha256"] != now["ids_sha256"]:
            changed = changed or key == "val"
            warn(
                console,
                f"the {key} images have changed: {old['images']} before, {now['images']} now; the "
                "result will differ from that of an uninterrupted run",
            )
    return changed


def _continue_stopping(trainer: pl.Trainer, console: Console, *, anew: bool) -> None:
    """Let early stopping resume with the current patience; anew: without its best score so far."""
    current = {own: own.state_dict() for own in trainer.early_stopping_callbacks}

    def on_train_start(*_: Any) -> None:  # the state has been loaded
        for own, fresh in current.items():
            patience = {"patience": fresh["patience"]}
            own.load_state_dict(fresh if anew else own.state_dict() | patience)
            if own.wait_count >= max(own.patience, 1):  # it had stopped before the evaluation
                trainer.should_stop = True
                console.print("early stopping had ended it; a larger patience trains further")

    trainer.callbacks.append(LambdaCallback(on_train_start=on_train_start))  # type: ignore


def _mean_iou(plan: Plan, run: TrainerParts, path: Path) -> float:
    """Return the mean IoU of a checkpoint on the images that validation sees."""
    model = InferenceModel(checkpoint.load(path), plan.device, plan.precision)
    val, batch_size = run.data.val, validation_batch_size(plan.recipe)
    if (limit := plan.trainer.get("limit_val_batches")) is not None:
        batches = SameSizeBatches(val.sizes(), batch_size).batches[: limit * plan.processes.world]
        val = val.part(index for batch in batches for index in batch)
    return evaluate(model, val, Console(quiet=True), batch_size=batch_size).metrics.mean_iou


def evaluate_best(
    plan: Plan, model: FCN, metadata: dict[str, Any], history: History, console: Console
) -> dict[str, Any]:
    """Evaluate the best model, write the numbers and pictures; return the metrics.

    Raises:
        UserError: says that the model is there, and how to evaluate it again.
    """
    folder, data = plan.folder, plan.settings.data
    try:
        if history.loss and history.mean_iou:
            curves = {"training loss": history.loss}, {"validation mean IoU": history.mean_iou}
            plots.curve_plot(*curves).save(folder / "curves.png")
            write_json(folder / "history.json", history.state_dict())
        metrics = evaluate_and_write(
            InferenceModel(model, plan.device, plan.precision),
            plan.val,
            folder,
            console,
            data=data.title,
            split=data.val_split,
            batch_size=validation_batch_size(plan.recipe),  # no more memory than in validation
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
    """Log the settings and the final mean IoU, by which TensorBoard ranks runs (hp_metric)."""
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
