"""What was measured, as tables and lines for a terminal of 100 columns."""

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


def nets(report: Row) -> list[Table | str]:
    height, width = report["size"]
    of = f"{report['batch']} x {height} x {width}"
    tops = report["ceiling"].items()
    names = ("ms (quartiles)", "n", "images/s", "GFLOP", "TFLOP/s", "ceiling", "memory", "time")
    result: list[Table | str] = []
    for mode in MODES:
        shown = table(f"{mode}, {of}", "net", *names)
        for row in report["rows"]:
            own = row[mode]
            shown.add_row(
                row["name"],
                milliseconds(own),
                str(own["seconds"]["n"]),
                rate(own),
                digits(own["seconds"]["flops"] / 1e9),
                digits(own["flops_per_second"] / 1e12),
                f"{own['share_of_ceiling']:.0%}",
                f"{own['peak_bytes'] / 1e9:.2f} GB" if own["peak_bytes"] else "-",
                times(own),
            )
        result.append(shown)
    reached = [f"{digits(top['flops_per_second'] / 1e12)} in {name}" for name, top in tops]
    legend = [f"ceiling: TFLOP/s of matrix products, {', '.join(reached)}"]
    legend += [
        f"{r['name']}: {r['precision']}, {r['layout']}; {r['about']}" for r in report["rows"]
    ]
    return [*result, "\n".join(legend)]


def upsampling(rows: Sequence[Row]) -> list[Table | str]:
    names = ("forward ms", "time", "with backward", "time", "differs", "inside")
    title = "upsampling layers, float32; differs: from the plain deconvolution, at most"
    shown = table(title, "layer", *names)
    for row in rows:
        forward, both = row["forward"], row["forward_backward"]
        inside = row["difference_inside"]
        shown.add_row(
            f"x{row['factor']} {row['layer']}",
            milliseconds(forward),
            times(forward),
            milliseconds(both),
            times(both),
            f"{row['difference']:.0e}",
            "-" if inside is None else f"{inside:.0e}",
        )
    return [shown]


def sizes(rows: Sequence[Row]) -> list[Table | str]:
    shown = table("by image size, 1 image", "net", "side", *(f"{mode} ms" for mode in MODES))
    for row in rows:
        cells = (speed_or(row[mode], milliseconds) for mode in MODES)
        shown.add_row(row["name"], str(row["side"]), *cells)
    return [shown]


def batches(rows: Sequence[Row]) -> list[Table | str]:
    height, width = rows[0]["size"]
    names = [name for mode in MODES for name in (f"{mode} ms", "images/s")]
    shown = table(f"by batch, images of {height} x {width}", "images", *names)
    for row in rows:
        cells = []
        for mode in MODES:
            cells += [speed_or(row[mode], milliseconds), speed_or(row[mode], rate)]
        shown.add_row(str(row["batch"]), *cells)
    return [shown]


def loader(report: Row) -> list[Table | str]:
    height, width = report["size"]
    title = f"loader of data={report['data']}, {report['workers']} processes, {height} x {width}"
    shown = table(title, "alone", "images", "ms", "images/s")
    shown.add_row("loader", str(report["batch"]), milliseconds(report), rate(report))
    step = report["step"]
    shown.add_row("training step", str(step["batch"]), milliseconds(step), rate(step))
    return [shown, f"the loader is {digits(report['feeds'])} times as fast as the step"]


def evaluation(report: Row) -> list[Table | str]:
    title = f"evaluation of {report['images']} images of data={report['data']}"
    return [_pair(title, report, {"forward": "net alone", "evaluate": "files to scores"})]


def loop(report: Row) -> list[Table | str]:
    height, width = report["size"]
    title = f"training loop, {report['batch']} x {height} x {width}"
    return [_pair(title, report, {"bare": "bare step", "trainer": "Lightning's step"})]


def _pair(title: str, report: Row, names: dict[str, str]) -> Table:
    shown = table(title, "", "ms (quartiles)", "n", "images/s", "time")
    for key, name in names.items():
        own, slower = report[key], 1.0 if name == next(iter(names.values())) else report["slower"]
        n = str(own["seconds"]["n"])
        shown.add_row(name, milliseconds(own), n, rate(own), times({"slower": slower}))
    return shown


def speed_or(speed: Row | None, show: Callable[[Row], str]) -> str:
    """What the device's memory did not hold has no speed."""
    return "out of memory" if speed is None else show(speed)


def milliseconds(speed: Row) -> str:
    """The median and the quartiles: 123 (120..130)."""
    seconds = speed["seconds"]
    low, high = seconds["quartiles"]
    return f"{digits(1e3 * seconds['median'])} ({digits(1e3 * low)}..{digits(1e3 * high)})"


def rate(speed: Row) -> str:
    return digits(speed["images_per_second"])


def times(speed: Row) -> str:
    """How many times as long as the first takes."""
    return f"x {digits(speed['slower'])}"


def digits(value: float) -> str:
    """Two after the point below 10, one below 100, then none."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


PARTS: dict[str, Callable[[Any], list[Table | str]]] = {
    "nets": nets,
    "sizes": sizes,
    "batches": batches,
    "upsampling": upsampling,
    "loader": loader,
    "evaluation": evaluation,
    "loop": loop,
}
