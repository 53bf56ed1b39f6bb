"""Exports a checkpoint: `scripts/export.py checkpoint=P format=onnx output=FILE.onnx`."""

from fcn.app import run
from fcn.checks.scripts import check_export
from fcn.config import ExportConfig


def main(cfg: ExportConfig) -> None:
    check_export(cfg)

    from rich.console import Console

    from fcn.inference.export import export

    export(cfg, Console(markup=False))


if __name__ == "__main__":
    run("export", main)
