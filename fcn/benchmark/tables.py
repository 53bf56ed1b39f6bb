"""What was measured as tables for a terminal of 100 columns."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table

from fcn.benchmark.nets import MODES

Row = dict[str, Any]


def table(title: str, *columns: str) -> Table:
    """Names at the left, numbers at the right; the title over them."""
    result = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in columns:
        result.add_column(column, justify="left" if not result.columns else "right", no_wrap=True)
    return result


def machine(machine: Row) -> Table:
    result = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    threads = f"{machine['cores']} cores, {machine['threads']} threads"
    result.add_row("processor", f"{machine['cpu']}, {threads}")
    result.add_row("instructions", ", ".join(machine["isa"]) or "-")
    if machine["gpu"]:
        result.add_row("GPU", f"{machine['gpu']}, {machine['gpu_memory'] / 2**30:.0f} GiB")
    result.add_row("torch", f"{machine['torch']}, torchvision {machine['torchvision']}")
    return result


def nets(report: Row) -> list[Table]:
    height, width = report["size"]
    of = f"{report['batch']} x {height} x {width}"
    tops = report["ceiling"].items()
    names = ("ms (quartiles)", "n", "images/s", "GFLOP", "TFLOP/s", "ceiling", "memory", "time")
    result = []
    for mode in MODES:
        shown = table(f"{mode}, {of}", "net", *names)
        for row in report["rows"]:
            own = row[mode]
            shown.add_row(
                row["name"],
                milliseconds(own["seconds"]),
                str(own["seconds"]["n"]),
                digits(own["images_per_second"]),
                digits(own["flops"] / 1e9),
                digits(own["flops_per_second"] / 1e12),
                f"{own['share_of_ceiling']:.0%}",
                f"{own['peak_bytes'] / 1e9:.2f} GB",
                times(own),
            )
        result.append(shown)
    reached = (f"{name} {top['flops_per_second'] / 1e12:.3g} TFLOP/s" for name, top in tops)
    result[-1].caption = f"ceiling, matrix products in {', in '.join(reached)}"
    result[-1].caption_justify = "left"
    return result


def upsampling(rows: Sequence[Row]) -> list[Table]:
    names = ("forward ms", "time", "with backward", "time", "differs", "inside")
    shown = table("upsampling layers, float32", "layer", *names)
    for row in rows:
        forward, both = row["forward"], row["forward_backward"]
        inside = row["difference_inside"]
        shown.add_row(
            f"x{row['factor']} {row['layer']}",
            milliseconds(forward["seconds"]),
            times(forward),
            milliseconds(both["seconds"]),
            times(both),
            f"{row['difference']:.0e}",
            "-" if inside is None else f"{inside:.0e}",
        )
    return [shown]


def milliseconds(seconds: Row) -> str:
    """The median and the quartiles: 123 (120..130)."""
    low, high = seconds["quartiles"]
    return f"{digits(1e3 * seconds['median'])} ({digits(1e3 * low)}..{digits(1e3 * high)})"


def times(speed: Row) -> str:
    """How many times as long as the first takes."""
    return f"x {digits(speed['slower'])}"


def digits(value: float) -> str:
    """Two after the point below 10, one below 100, then none."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


PARTS: dict[str, Callable[[Any], list[Table]]] = {"nets": nets, "upsampling": upsampling}
