"""A grid of runs, models x upsamplings x seeds, and what comes out of it.

Is learning the interpolation necessary? The authors' FAQ says that fixing it "does not make a
significant difference"; this runs the comparison, each cell a run like any other, over seeds.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from hydra import compose
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

from fcn import plots
from fcn.app import quoted
from fcn.checks.training import check, learning_rate
from fcn.checks.values import check_values
from fcn.config import REPOSITORY, AblateConfig, ConfigError, TrainConfig
from fcn.inference.evaluation import read_metrics, write_json
from fcn.inference.report import percent
from fcn.messages import explain
from fcn.models.fcn import FCN, lay_out
from fcn.recorded import read_yaml
from fcn.training.loss import segmentation_loss
from fcn.training.recipe import make_optimizer
from fcn.training.trainer import device_of, precision_of

TRIMAP = 3  # pixels: the band where the strides differ most


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    model: str
    upsampling: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.model} {self.upsampling} seed {self.seed}"

    @property
    def done(self) -> bool:
        return (self.folder / "model.safetensors").is_file()  # the last thing that a run writes

    @property
    def started(self) -> bool:
        return any((self.folder / "checkpoints").glob("*.ckpt"))

    def overrides(self, cfg: AblateConfig) -> list[str]:
        """What scripts/train.py is given for it."""
        own = [f"model={self.model}", f"upsampling={self.upsampling}", f"seed={self.seed}"]
        return [*cfg.overrides, *own]


@dataclass
class Row:
    """What a model with one kind of upsampling came to, over seeds. IoU in 0..1."""

    model: str
    upsampling: str
    mean_iou: list[float]  # by seed, in the grid's order
    trimap: list[float]  # the same within `TRIMAP` pixels of borders
    from_first: list[float]  # mean_iou minus the grid's first upsampling's of the same seed
    parameters: int  # trainable, of upsampling
    step_seconds: float | None  # median


def grid(cfg: AblateConfig, folder: Path) -> list[Cell]:
    return [
        Cell(model, upsampling, seed, folder / f"{model}_{upsampling}_{seed}")
        for seed in cfg.seeds  # outermost: a grid cut short still compares all choices
        for model in cfg.models
        for upsampling in cfg.upsamplings
    ]


def run_grid(cells: Sequence[Cell], cfg: AblateConfig, console: Console) -> list[Cell]:
    """Trains every cell that is not done, `cfg.jobs` at a time; one cut short goes on.

    Returns: the cells that failed; their train.log says why.
    Raises: ConfigError: settings that train.py would refuse; or a cell that is there was trained
        with others.
    """
    for cell in cells:
        refuse_other_settings(cell, cfg)
    refuse_overrides({(c.model, c.upsampling): c.overrides(cfg) for c in cells}.values())
    waiting, failed = [cell for cell in cells if not cell.done], []
    if len(waiting) < len(cells):
        console.print(f"{len(cells) - len(waiting)} of {len(cells)} runs are done already")
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(cfg.jobs) as pool:
        task = progress.add_task("runs", total=len(waiting))
        pending = {pool.submit(run_cell, cell, cfg): cell for cell in waiting}
        try:
            for future in as_completed(pending):
                cell, seconds = pending[future], future.result()
                if cell.done:
                    result = f"mean IoU {percent(_metrics(cell)['mean_iou'])} in {seconds:.0f} s"
                else:
                    failed.append(cell)
                    result = f"failed: {_last_line(cell.folder / 'train.log')}"
                console.print(f"{cell.name}: {result}", highlight=False, soft_wrap=True)
                progress.advance(task)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return failed


def run_cell(cell: Cell, cfg: AblateConfig) -> float:
    """Trains one cell in a process of its own. Returns: seconds."""
    started = time.monotonic()
    if not cell.started and cell.folder.exists():
        shutil.rmtree(cell.folder)  # cut short before its first checkpoint
    cell.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(REPOSITORY / "scripts" / "train.py")]
    command += ["resume=last"] if cell.started else cell.overrides(cfg)  # it remembers its settings
    command.append(f"hydra.run.dir={quoted(cell.folder.resolve())}")
    environment = dict(os.environ)
    if cfg.jobs > 1:  # threads of several runs on the same cores wait for one another
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // cfg.jobs))
    with open(cell.folder / "train.log", "a", encoding="utf-8") as log:
        subprocess.run(command, stdout=log, stderr=log, env=environment, check=False)
    return time.monotonic() - started


def refuse_overrides(command_lines: Iterable[Sequence[str]]) -> None:
    """Raises: ConfigError: train.py would refuse one of its command lines, and why."""
    for overrides in command_lines:
        try:
            settings: Any = OmegaConf.to_object(compose("train", list(overrides)))
            check_values(settings)
            check(settings)
        except Exception as error:
            raise ConfigError(f"overrides: {explain(error, 'train')}") from error


def refuse_other_settings(cell: Cell, cfg: AblateConfig) -> None:
    """Raises: ConfigError: what lies in the cell's folder is another run."""
    recorded = cell.folder / ".hydra" / "overrides.yaml"
    if not recorded.is_file() or not (cell.done or cell.started):
        return
    passing = ("resume=", "model.init_from=")  # which a run that goes on has, or has no more
    there, wanted = (
        {str(override) for override in overrides if not str(override).startswith(passing)}
        for overrides in (read_yaml(recorded) or [], cell.overrides(cfg))
    )
    if other := sorted(there ^ wanted):
        raise ConfigError(
            f"{cell.folder} was trained with other settings ({', '.join(other)}); choose another "
            "hydra.run.dir, or the same overrides"
        )


def collect(cells: Iterable[Cell], step_seconds: dict[tuple[str, str], float]) -> list[Row]:
    """A row for each model and upsampling, of the cells that are done."""
    cells = list(cells)
    metrics = {(c.model, c.upsampling, c.seed): _metrics(c) for c in cells if c.done}
    pairs = list(dict.fromkeys((c.model, c.upsampling) for c in cells))
    first = cells[0].upsampling
    rows = []
    for model, upsampling in pairs:
        own = {s: m for (mo, u, s), m in metrics.items() if (mo, u) == (model, upsampling)}
        if not own:
            continue
        base = {s: m["mean_iou"] for (mo, u, s), m in metrics.items() if (mo, u) == (model, first)}
        net = FCN(**next(iter(own.values()))["protocol"]["model"])
        rows.append(
            Row(
                model,
                upsampling,
                [m["mean_iou"] for m in own.values()],
                [m["trimap"][TRIMAP - 1] for m in own.values()],
                [m["mean_iou"] - base[s] for s, m in own.items() if s in base],
                sum(p.numel() for n, p in net.named_parameters() if n.startswith("upscore")),
                step_seconds.get((model, upsampling)),
            )
        )
    return rows


def time_steps(
    cells: Iterable[Cell], rounds: int, console: Console
) -> dict[tuple[str, str], float]:
    """Median seconds of a training step, by model and upsampling, with nothing else running.

    The nets take turns, so that what else the machine does falls on all alike.
    """
    steps = {(c.model, c.upsampling): _Step(_config(c), _metrics(c)) for c in cells if c.done}
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    with Progress(console=console, transient=True) as progress:
        for turn in progress.track(range(rounds + 2), description="timing steps"):
            for key, step in steps.items():
                started = time.perf_counter()
                step()
                if turn >= 2:  # the first two warm up
                    taken[key].append(time.perf_counter() - started)
    return {key: median(seconds) for key, seconds in taken.items() if seconds}


class _Step:
    """A training step of a cell's net on random images of its recipe's size."""

    def __init__(self, cfg: TrainConfig, metrics: dict[str, Any]) -> None:
        self.device = device_of(cfg.trainer)
        self.bf16 = precision_of(cfg.trainer) == "bf16-mixed"
        arguments = metrics["protocol"]["model"]
        self.net = FCN(**arguments).train()
        lay_out(self.net, self.device)
        self.optimizer = make_optimizer(self.net, cfg.recipe, learning_rate(cfg.recipe, cfg.model))
        height, width = (cfg.recipe.crop or 375, cfg.recipe.crop or 500)
        shape = (cfg.recipe.batch_size, height, width)
        image = torch.rand(shape[0], 3, *shape[1:], device=self.device)
        self.image = image.to(memory_format=torch.channels_last)
        self.target = torch.randint(0, arguments["num_classes"], shape, device=self.device)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss = segmentation_loss(self.net(self.image), self.target, "mean")
        loss.backward()
        self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def write(rows: Sequence[Row], cfg: AblateConfig, folder: Path) -> None:
    """ablation.json and ablation.png."""
    content = {"settings": asdict(cfg), "trimap_pixels": TRIMAP, "rows": [asdict(r) for r in rows]}
    write_json(folder / "ablation.json", content)
    groups: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        groups.setdefault(row.model, {})[row.upsampling] = row.mean_iou
    plots.dots(groups, "mean IoU (%), a dot a seed, a bar their mean").save(folder / "ablation.png")


def table(rows: Sequence[Row], first: str) -> Table:
    """Mean and range over seeds, in points; differences from upsampling `first`, by seed."""
    names = ("mean IoU", f"from {first}", f"{TRIMAP} px band", "weights", "ms a step")
    result = Table("model", "upsampling", *names, box=None)
    for column in result.columns:
        column.no_wrap = column.header in ("model", "upsampling")
        column.justify = "left" if column.no_wrap else "right"
    for row in rows:
        low, high = 100 * min(row.mean_iou), 100 * max(row.mean_iou)
        each = " ".join(f"{100 * difference:+.1f}" for difference in row.from_first)
        result.add_row(
            row.model,
            row.upsampling,
            f"{100 * fmean(row.mean_iou):.1f} ({low:.1f}..{high:.1f})",
            f"{100 * fmean(row.from_first):+.1f} ({each})" if row.from_first else "-",
            percent(fmean(row.trimap)),
            f"{row.parameters:,}",
            "-" if row.step_seconds is None else f"{1000 * row.step_seconds:.1f}",
        )
    return result


def _metrics(cell: Cell) -> dict[str, Any]:
    return read_metrics(cell.folder / "metrics.json")


def _config(cell: Cell) -> TrainConfig:
    path = cell.folder / ".hydra" / "config.yaml"
    try:
        cfg: Any = OmegaConf.to_object(OmegaConf.merge(TrainConfig, read_yaml(path)))
    except (OmegaConfBaseException, ValueError, AssertionError) as error:
        raise ConfigError(f"{path}: not the settings of a training run ({error})") from None
    return cfg


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{lines[-1] if lines else 'it said nothing'} ({log})"
