"""Fetches, checks and reports on a data set: `scripts/prepare_data.py data=... [key=value ...]`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcn.app import run
from fcn.checks.scripts import check_preparation
from fcn.config import PrepareDataConfig

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.table import Table

    from fcn.data.audit import Audit

SHOWN = 6  # images of each split on the contact sheet
NAMED = 100  # problems on the terminal; report.json has all


def main(cfg: PrepareDataConfig) -> None:
    check_preparation(cfg)

    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console
    from rich.progress import Progress

    from fcn.data.audit import audit
    from fcn.data.official import fetch
    from fcn.data.reading import DataError
    from fcn.data.shards import index_name
    from fcn.inference.evaluation import write_json

    folder, console = Path(HydraConfig.get().runtime.output_dir), Console(markup=False)
    if cfg.data.download:
        fetch(cfg.data, console)
    splits = [cfg.data.train_split, cfg.data.val_split]
    if cfg.data.split is not None:
        splits.append(cfg.data.split)
    for split in splits if cfg.shards is not None else ():
        index_name(split)  # refuses one that cannot name a file, before all is read
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"reading {cfg.data.name}", total=None)
        found = audit(
            cfg.data,
            list(dict.fromkeys(splits)),
            cfg.processes,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    report = found.report(cfg.data)
    write_json(folder / "report.json", report)
    if sheet := contact_sheet(found):
        sheet.save(folder / "contact_sheet.png")
    for table in tables(report):
        console.print(table)
    plain: Any = {"highlight": False, "soft_wrap": True}
    for warning in found.warnings[:NAMED]:
        console.print(f"note: {warning}", **plain)
    for problem in found.problems[:NAMED]:
        console.print(f"problem: {problem}", **plain)
    if found.problems:
        raise DataError(
            f"data={cfg.data.name} cannot be trained on as it is: {len(found.problems)} problems, "
            f"all named in {folder / 'report.json'}"
        )
    console.print(f"data={cfg.data.name} can be trained on; files in {folder}", **plain)
    if cfg.shards is not None:
        write_shards(found, cfg, Path(cfg.shards), console)


def write_shards(found: "Audit", cfg: PrepareDataConfig, folder: Path, console: "Console") -> None:
    """Every split as WebDataset tars with an index; what is there already is kept."""
    from rich.progress import Progress

    from fcn.data import shard_writer

    for split in found.splits:
        assert split.files is not None
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(f"writing {split.name}", total=len(split.files))
            shard_writer.write_shards(
                split.files,
                folder,
                split.name,
                progress=partial(_advance, bar, task),
            )
    train, val = cfg.data.train_split, cfg.data.val_split
    names = (
        ""
        if (train, val) == ("train", "val")
        else f" data.train_split={train} data.val_split={val}"
    )
    console.print(
        f"shards in {folder}: data=shards data.root={folder}{names} trains on them",
        highlight=False,
        soft_wrap=True,
    )


def _advance(bar: "Progress", task: "TaskID", done: int, _: int) -> None:
    bar.update(task, completed=done)


def tables(report: dict[str, Any]) -> "list[Table]":
    """The splits side by side: their numbers, then their classes."""
    from rich.table import Table

    splits = {name: split for name, split in report["splits"].items() if split["usable"]}
    numbers, classes = Table("split", box=None), Table("class", box=None)
    for name in report["splits"]:
        numbers.add_column(name, justify="right")
    for name in splits:
        classes.add_column(f"{name} images", justify="right")
        classes.add_column("pixels", justify="right")
    every = report["splits"].values()
    numbers.add_row("images", *(f"{split['images']:,}" for split in every))
    numbers.add_row("usable", *(f"{split['usable']:,}" for split in every))
    for title, key in (("smallest", "smallest"), ("largest", "largest")):
        sizes = (split["sizes"][key] if split["usable"] else None for split in every)
        numbers.add_row(title, *(f"{size[0]} x {size[1]}" if size else "-" for size in sizes))
    for key in ("mean", "std"):
        numbers.add_row(
            f"{key} of RGB",
            *(
                " ".join(f"{v:.3f}" for v in split[key]) if split["usable"] else "-"
                for split in every
            ),
        )
    numbers.add_row(
        "void", *(f"{split['void_share']:.2%}" if split["usable"] else "-" for split in every)
    )
    for rows in zip(*(split["classes"] for split in splits.values()), strict=True):
        cells = (
            (f"{row['images']:,}", f"{row['pixels'] / split['pixels']:.2%}")
            for row, split in zip(rows, splits.values(), strict=True)
        )
        classes.add_row(rows[0]["name"], *(cell for pair in cells for cell in pair))
    return [numbers, classes] if splits else [numbers]


def contact_sheet(found: "Audit") -> "Image | None":
    """Usable images of every split, evenly spaced, each beside its mask."""
    import numpy as np

    from fcn import panels

    samples, captions, classes = [], [], []
    for split in found.splits:
        usable = split.usable
        for place in np.linspace(0, len(usable) - 1, min(SHOWN, len(usable))).round().astype(int):
            assert split.files is not None
            image, target = split.files[usable[place]]
            samples.append((image.permute(1, 2, 0).numpy(), target.numpy()))
            captions.append(f"{split.name}: {split.files.ids[usable[place]]}")
            classes = split.files.classes
    return panels.contact_sheet(samples, classes, captions) if samples else None


if __name__ == "__main__":
    run("prepare_data", main)
