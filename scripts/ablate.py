"""Compares upsamplings: `python scripts/ablate.py [key=value ...]`; `--help` lists the keys."""

import sys
from pathlib import Path

from fcn.app import run
from fcn.checks.scripts import check_ablation
from fcn.config import AblateConfig, UserError


def main(cfg: AblateConfig) -> None:
    check_ablation(cfg)

    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console

    from fcn.training import ablation

    folder = Path(HydraConfig.get().runtime.output_dir)
    width = None if sys.stdout.isatty() else 110  # a log has room for the table
    console = Console(width=width, markup=False)
    cells = ablation.grid(cfg, folder)
    failed = ablation.run_grid(cells, cfg, console)
    if rows := ablation.collect(cells, {}):
        ablation.write(rows, cfg, folder)  # before the timing, so that nothing can lose it
        if cfg.time_rounds:
            rows = ablation.collect(cells, ablation.time_steps(cells, cfg.time_rounds, console))
            ablation.write(rows, cfg, folder)
        console.print(ablation.table(rows, cfg.upsamplings[0]))
    if failed:
        again = f"hydra.run.dir={folder}"
        raise UserError(f"{len(failed)} of {len(cells)} runs failed; {again} goes on with them")
    console.print(f"ablation.json and ablation.png in {folder}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run("ablate", main)
