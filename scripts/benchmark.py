"""How fast is it here? `python scripts/benchmark.py [--quick] [key=value ...]`; see `--help`."""

import sys
from pathlib import Path

from fcn.app import run
from fcn.checks.scripts import check_benchmark
from fcn.config import BenchmarkConfig


def main(cfg: BenchmarkConfig) -> None:
    check_benchmark(cfg)

    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console

    from fcn.benchmark.run import benchmark

    folder = Path(HydraConfig.get().runtime.output_dir)
    width = None if sys.stdout.isatty() else 100  # a log has room for the tables
    console = Console(width=width, markup=False)
    benchmark(cfg, folder, console)
    written = " and ".join(sorted(path.name for path in folder.glob("benchmark.*")))
    console.print(f"{written} in {folder}", highlight=False, soft_wrap=True)


def spell_quick_out() -> None:
    """--quick is quick=true."""
    sys.argv = ["quick=true" if argument == "--quick" else argument for argument in sys.argv]


if __name__ == "__main__":
    run("benchmark", main, spell_quick_out)
