"""Writes a page on runs: `python scripts/report.py runs=[FOLDER,...] output=report.html`."""

from pathlib import Path

from fcn.app import run
from fcn.checks.scripts import check_report
from fcn.config import ReportConfig


def main(cfg: ReportConfig) -> None:
    check_report(cfg)

    from rich.console import Console

    from fcn.inference.evaluation import pick_device
    from fcn.inference.page import report_page
    from fcn.inference.runs import open_runs

    console, output = Console(markup=False), Path(cfg.output)
    device = pick_device(cfg.device)
    text = report_page(open_runs(cfg.runs, cfg.data.root), cfg.images, console, device)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(output.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(output)
    size = output.stat().st_size / 1e6
    console.print(f"{output}: {size:.1f} MB, opens in any browser", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run("report", main)
