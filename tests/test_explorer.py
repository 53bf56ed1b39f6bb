"""The explorer in headless Chromium: what it computes and shows, against PyTorch."""

import base64
import html
import io
import itertools
import json
import math
import random
import re
import shutil
import subprocess
from fractions import Fraction
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fcn.dataset_info import DatasetInfo
from fcn.explain.demo import Subject
from fcn.explain.pages import EXPLORER, explorer, learned_kernels
from tests.conftest import random_model

LEARNED = 'upscore2: </script><b>&"\\'
PAGE = explorer({LEARNED: [[0.5, 0.25], [0.125, 1.0]]})

BEFORE = """<script>
const problems = [];
console.error = console.warn = (...words) => problems.push(words.join(" "));
addEventListener("error", (event) => problems.push(event.message));
addEventListener("unhandledrejection", (event) => problems.push(String(event.reason)));
</script>"""
AFTER = """<script type="module">
const id = (name) => document.getElementById(name);
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const text = (name) => id(name).textContent;
const figures = Object.fromEntries(Object.entries(grids).map(([name, grid]) => [name, grid.host]));
async function visit(hash) { // as a link does; browsers limit how often the address may change
  location.hash = hash;
  await wait(100);
}
function number(td) { // [in the label, in the cell]
  const stop = td.firstElementChild ?? td, label = stop.getAttribute("aria-label");
  const [, rounded, , exact] = /: ([^,]*)(, exactly ([^,]*))?/.exec(label);
  return [exact ?? rounded, stop.value ?? stop.textContent];
}
function shown() { // every table of numbers; a canvas is null, hidden ones are left out
  const found = {};
  for (const [name, figure] of Object.entries(figures)) {
    if (figure.closest("[hidden]") || grids[name].still) continue;
    const rows = [...figure.querySelectorAll("tr")].map((tr) => [...tr.cells].map(number));
    found[name] = figure.querySelector("canvas") ? null : rows;
  }
  return found;
}
(async () => {
  const results = {};
  try { SCRIPT } catch (error) { problems.push(error.stack); }
  const pre = document.createElement("pre");
  pre.id = "results";
  pre.textContent = JSON.stringify({ ...results, problems });
  document.body.replaceChildren(pre);
})();
</script>"""


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory):
    """Runs JavaScript that fills `results` in the page, in a browser; returns the results."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium or google-chrome is installed")

    def run(script: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("explorer")
        page = PAGE.replace("<style>", BEFORE + "<style>", 1)
        page = page.replace("</body>", AFTER.replace("SCRIPT", script) + "</body>")
        (folder / "page.html").write_text(page, encoding="utf-8")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += [f"--user-data-dir={folder}", "--window-size=1280,900"]
        command += ["--virtual-time-budget=60000", (folder / "page.html").as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        found = re.search(r'<pre id="results">(.*?)</pre>', done.stdout, re.DOTALL)
        assert found, done.stderr[-2000:]
        results = json.loads(html.unescape(found[1]))
        assert results.pop("problems") == []
        return results

    return run


def settings(seed: int) -> dict[str, Any]:
    """Return a random state of the page, impossible ones included."""
    draw = random.Random(seed)

    def numbers(count: int) -> str:
        return ",".join(str(draw.randint(-999, 999) / 100) for _ in range(count))

    n, k = draw.choice([1, 2, 2, 3, 3, 4, 5, 8]), draw.choice([1, 2, 3, 3, 4, 4, 5, 6, 16])
    return {
        "t": draw.choice([0, 1, 1]),
        "n": n,
        "k": k,
        "s": draw.choice([1, 2, 2, 3, 4, 8]),
        "p": draw.choice([0, 0, 1, 1, 2, 3, 7]),
        "o": draw.choice([0, 0, 0, 1, 2]),
        "d": draw.choice([1, 1, 1, 2, 3]),
        "x": draw.choice(["ones", "count", numbers(n * n)]),
        "w": draw.choice(["ones", "bilinear", "count", *2 * [numbers(k * k)]]),
        "g": draw.choice(["ones", "count"]),
    }


def values(fill: str, side: int) -> Tensor:
    """Return the numbers (side, side) that an address describes, float64."""
    if fill == "bilinear":
        centre, factor = (side - 1) / 2, (side + 1) // 2
        tent = 1 - (torch.arange(side).double() - centre).abs() / factor
        return tent[:, None] * tent
    many = {"ones": [1.0] * side**2, "count": range(1, side**2 + 1)}
    numbers = many[fill] if fill in many else [float(number) for number in fill.split(",")]
    return torch.tensor(numbers, dtype=torch.float64).reshape(side, side)


def layer(case: dict[str, Any], x: Tensor, w: Tensor) -> Tensor:
    """Return PyTorch's output of a setting, for x (H, W) or (B, H, W).

    Raises:
        RuntimeError, TypeError: there is no such layer.
    """
    options = {"stride": case["s"], "padding": case["p"], "dilation": case["d"]}
    if case["o"] or case["t"]:
        options["output_padding"] = case["o"]
    function = F.conv_transpose2d if case["t"] else F.conv2d
    return function(x.reshape(-1, 1, *x.shape[-2:]), w[None, None], **options).squeeze(1)


def expected(case: dict[str, Any]) -> dict[str, Tensor]:
    """Return what the tables of the page must show, by PyTorch."""
    n, k, s, p, d = (case[key] for key in "nkspd")
    x, w = values(case["x"], n).requires_grad_(), values(case["w"], k).requires_grad_()
    (y,) = layer(case, x, w)
    dy = values(case["g"], len(y))
    dx, dw = torch.autograd.grad(y, (x, w), dy)
    one_hot = torch.eye(n * n, dtype=torch.float64).reshape(-1, n, n)
    matrix = layer(case, one_hot, w).flatten(1).T
    found = {"input": x, "kernel": w, "output": y, "sum": y, "forward": matrix, "back": matrix.T}
    found |= {"gradOutput": dy, "gradInput": dx, "gradKernel": dw}
    (found["counts"],) = layer(case, torch.ones_like(x), torch.ones_like(w))
    found["turned"] = w.flip(0, 1) if case["t"] else w
    if case["t"]:
        (found["sum"],) = layer(case | {"p": 0, "o": max(0, case["o"] - p)}, x, w)  # with its frame
        periods = math.ceil(d * (k - 1) / s)  # until all weights meet
        constant = torch.ones(periods + 2, periods + 2, dtype=torch.float64)
        (flat,) = layer(case | {"p": 0, "o": 0}, constant, w)
        found["phases"] = flat[periods * s :, periods * s :][:s, :s]
    return {name: numbers.detach() for name, numbers in found.items()}


def parse(text: str) -> float:
    return float(Fraction(text.replace("−", "-")))


def assert_equal(table: list[list[list[str]]], numbers: Tensor, about: str) -> None:
    """Check a table's exact numbers to 1e-6 and its short ones to two digits."""
    exact = np.array([[parse(label) for label, _ in row] for row in table])
    short = np.array([[parse(text) for _, text in row] for row in table])
    np.testing.assert_allclose(exact, numbers.numpy(), rtol=0, atol=1e-6, err_msg=about)
    digits = np.floor(np.log10(np.abs(exact) + (exact == 0)))
    assert (np.abs(short - exact) <= 0.5001 * 10 ** (digits - 1)).all(), about


def test_all_numbers_of_100_random_settings_are_those_of_pytorch(browse) -> None:
    cases = [settings(seed) for seed in range(100)]
    hashes = ["#" + "&".join(f"{key}={value}" for key, value in case.items()) for case in cases]
    pages = browse(
        f"""results.pages = [];
        for (const hash of {json.dumps(hashes)}) {{
            await visit(hash);
            const names = ["summary", "numbers", "gains", "overlap", "views", "PyTorch"];
            const page = Object.fromEntries(names.map((name) => [name, text(name)]));
            page.problem = id("problem").hidden ? "" : text("problem");
            results.pages.push({{ ...page, grids: shown() }});
        }}"""
    )["pages"]
    possible, tables = 0, set()
    for case, page in zip(cases, pages, strict=True):
        about = str(case)
        assert not re.search("NaN|undefined|Infinity", page["views"]), about
        try:
            right = expected(case)
        except (RuntimeError, TypeError):
            assert len(page["problem"]) > 40, about
            assert page["grids"] == {}
            continue
        possible += 1
        assert page["problem"] == "", about
        side = len(right["output"])
        assert page["summary"] == f"{case['n']} × {case['n']} in, {side} × {side} out", about
        assert page["numbers"].endswith(f"= {side}"), about
        for name, table in page["grids"].items():
            if table is not None and name in right:
                tables.add(name)
                assert_equal(table, tiled(right[name], len(table), name), f"{name} {about}")
        if case["t"]:
            check_checkerboard(case, page, right)
        check_windows(case, page["grids"]["spread"], right)
        check_code(page["PyTorch"], right["output"])
    assert 0 < possible < len(cases)
    assert tables == {*right, "phases"}  # each was seen as numbers at least once


def tiled(numbers: Tensor, side: int, name: str) -> Tensor:
    """Repeat the pattern of a constant as often as the page does."""
    return (
        numbers.repeat(side // len(numbers), side // len(numbers)) if name == "phases" else numbers
    )


def check_windows(case: dict[str, Any], spread: Any, right: dict[str, Tensor]) -> None:
    """Check that sliding the kernel over the input with its zeros gives the output."""
    around = case["d"] * (case["k"] - 1) - case["p"] if case["t"] else 0  # negative: cut off
    if spread is None:
        return
    exact = torch.tensor([[parse(label) for label, _ in row] for row in spread]).double()
    if around < 0:
        exact = exact[-around:, -around:]
    case = case | {"t": 0, "o": 0, "p": 0, "s": 1 if case["t"] else case["s"]}
    (y,) = layer(case, exact, right["turned"])
    side = len(right["output"])
    torch.testing.assert_close(y[:side, :side], right["output"], atol=1e-4, rtol=1e-5)


def check_checkerboard(
    case: dict[str, Any], page: dict[str, Any], right: dict[str, Tensor]
) -> None:
    phases, kernel = right["phases"], right["kernel"].numpy()
    found = re.search(r"range is (\S+) %", page["overlap"])
    ripple = float((phases.max() - phases.min()) / phases.mean().abs())
    if found:
        assert parse(found[1]) == pytest.approx(100 * ripple, rel=0.006)
    else:
        assert ripple < 1e-3 or phases.mean().abs() < 1e-8
    unit, s = abs(kernel.sum()) if abs(kernel.sum()) > 1e-9 else 1, case["s"]
    turns = 2j * np.pi * case["d"] / s * np.outer(np.arange(s), np.arange(len(kernel)))
    gains = abs(np.exp(-turns) @ kernel @ np.exp(-turns).T) / unit  # at m/s down and n/s across
    ways = re.search("Across: (.*); down: (.*); both ways at once: up to (.*)[.]$", page["gains"])
    assert bool(ways) == (s > 1)
    if ways:
        for shown, of in zip(ways.groups(), (gains[0], gains[:, 0]), strict=False):
            for gain, m in re.findall(rf"(\S+) at (\d)/{s}", shown):
                assert parse(gain) == pytest.approx(of[int(m)], rel=0.006, abs=1e-6)
        assert parse(ways[3]) == pytest.approx(gains[1:, 1:].max(), rel=0.006, abs=1e-6)


def check_code(code: str, output: Tensor) -> None:
    """Run the PyTorch lines that the page shows."""
    printed: list[Tensor] = []
    exec(code, {"print": printed.append})
    torch.testing.assert_close(printed[0].double(), output, rtol=1e-4, atol=2e-2)


def test_channels_groups_bias_and_rectangles_of_100_random_settings_are_those_of_pytorch(
    browse,
) -> None:
    """With output padding, and for a given gradient; numbers of channels must agree."""
    draw = np.random.default_rng(1)
    cases = []
    while len(cases) < 100:
        groups, k, m, n, stride = (int(draw.integers(1, most + 1)) for most in (3, 4, 5, 5, 3))
        inputs, outputs = (groups * int(draw.integers(1, 4)) for _ in range(2))
        transposed, padding, dilation = (int(draw.integers(0, most)) for most in (2, 3, 3))
        shape = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
        options = {"stride": stride, "padding": padding, "dilation": dilation + 1}
        more = {"output_padding": int(draw.integers(0, 3))} if transposed else {}
        layer = F.conv_transpose2d if transposed else F.conv2d
        sizes = (1, inputs, m, n), (*shape, k, int(draw.integers(1, 5))), (outputs,)
        x, w, b = (torch.from_numpy(draw.normal(size=size)) for size in sizes)
        try:
            y = layer(x.requires_grad_(), w.requires_grad_(), b, groups=groups, **options, **more)
        except RuntimeError:
            continue
        dy = torch.from_numpy(draw.normal(size=tuple(y.shape)))
        dx, dw = torch.autograd.grad(y, (x, w), dy)
        given = {"input": x[0], "kernel": w, "bias": b, "gradOutput": dy[0]}
        given = {name: tensor.detach().tolist() for name, tensor in given.items()}
        given |= {"transposed": bool(transposed), "groups": groups, **options}
        given["outputPadding"] = more.get("output_padding", 0)
        right = {"output": y[0], "gradInput": dx[0], "gradKernel": dw}
        cases.append((given, {name: tensor.detach().numpy() for name, tensor in right.items()}))
    given = json.dumps([given for given, _ in cases])
    script = f"""const given = {given};
        results.found = given.map((one) => explore(one));
        const breaks = [
            ({{ input }}) => ({{ input: [...input, input[0]] }}),
            ({{ kernel }}) => ({{ kernel: [...kernel, kernel[0]] }}),
            ({{ kernel }}) => ({{ kernel: kernel.map((row) => [...row, row[0]]) }}),
            ({{ bias }}) => ({{ bias: [...bias, 0] }}),
            ({{ gradOutput }}) => ({{ gradOutput: gradOutput.slice(1) }}),
        ];
        results.refused = given.map((one) => breaks.map((change) => {{
            try {{
                explore({{ ...one, ...change(one) }});
                return "";
            }} catch ({{ message }}) {{ return message; }}
        }}));"""
    pages = browse(script)
    for messages in pages["refused"]:
        assert all("must" in message for message in messages)
    found = pages["found"]
    for page, (_, right) in zip(found, cases, strict=True):
        assert tuple(page["size"]) == right["output"].shape[1:]
        for name, numbers in right.items():
            np.testing.assert_allclose(page[name], numbers, atol=1e-10, err_msg=name)


def test_the_view_of_channels_shows_what_pytorch_computes(browse) -> None:
    """The numbers in the tables, and the sum that the view writes out."""
    found = browse(
        """const numbers = (grid) => [...grid.host.querySelectorAll("tr")].map((tr) =>
            [...tr.cells].map((td) => td.firstElementChild?.value ?? td.textContent));
        const shown = (grid) => (grid.host.hidden ? null : numbers(grid));
        results.views = [];
        for (const hash of ["#channels", "#channels&t=0&n=4&ci=3", "#channels&co=2&gr=2&b=1,-2,0",
                            "#channels&cw=diagonal&co=2", "#channels&t=0&n=4&co=2&gr=2",
                            "#channels&ci=3&gr=2"]) {
            await visit(hash);
            await wait(300);
            const { x, w, y, b } = channelGrids;
            results.views.push({ x: x.map(shown), w: w.map((row) => row.map(shown)),
              y: y.map(shown), b: shown(b), words: text("kernels") });
        }"""
    )["views"]
    *possible, refused = found
    assert "must divide" in refused["words"]
    assert not any(refused["x"])
    kinds = [(1, 1), (0, 1), (1, 2), (1, 1), (0, 2)]
    for view, (transposed, groups) in zip(possible, kinds, strict=True):
        tensors = {
            name: torch.tensor([[[parse(cell) for cell in row] for row in grid] for grid in grids])
            for name, grids in {"x": filter(None, view["x"]), "y": filter(None, view["y"])}.items()
        }
        rows = [[grid for grid in row if grid] for row in view["w"] if any(row)]  # [in][out]
        w = torch.tensor([[[[parse(c) for c in r] for r in grid] for grid in row] for row in rows])
        bias = torch.tensor([parse(cell) for cell in view["b"][0]])
        channels = len(bias), len(w) // groups  # of a convolution in TensorFlow: (k, k, in, out)
        shape = (3, 3, *(channels if transposed else reversed(channels)))
        assert (str(shape) in view["words"]) == (not transposed or groups == 1)
        absent = torch.ones(len(w), w.shape[1])
        if groups > 1:
            absent = torch.eye(len(w))
        w = w * absent[..., None, None]
        layer = F.conv_transpose2d if transposed else F.conv2d
        kernel = w if transposed else w.transpose(0, 1)
        y = layer(tensors["x"][None], kernel, bias, stride=2)[0]
        torch.testing.assert_close(tensors["y"], y, atol=0, rtol=0.06)  # two digits
        (total,) = re.findall(r"= (\S+)\.$", view["words"])
        assert parse(total) == pytest.approx(float(y[0, 0, 0]), abs=1e-6)


def test_what_output_padding_keeps_is_said_at_the_end_alone(browse) -> None:
    """What is cut off a row of stamps, and off the zeros around an input, at either end."""
    cases = [(k, p, o) for k in (1, 2, 3) for p in range(5) for o in range(3)]
    hashes = [f"#n=6&s=3&k={k}&p={p}&o={o}" for k, p, o in cases]
    pages = browse(
        f"""results.pages = [];
        for (const hash of {json.dumps(hashes)}) {{
            await visit(hash);
            const zeros = figures.spread.querySelector("figcaption").textContent;
            results.pages.push([text("line"), zeros]);
        }}"""
    )["pages"]
    for (k, p, o), (line, zeros) in zip(cases, pages, strict=True):
        about = f"kernel {k}, padding {p}, output_padding {o}"
        assert cut_in(line) == (p, max(0, p - o)), about
        start, end = k - 1 - p, k - 1 - p + o  # zeros around; negative: cut off
        if start >= 0:
            assert f"{start} around" in zeros, about
            assert (f"{o} more at the end" in zeros) == (o > 0), about
        else:
            assert cut_in(zeros) == (-start, max(0, -end)), about
            assert (f"{end} put there" in zeros) == (end > 0), about


def cut_in(words: str) -> tuple[int, int]:
    """Return how many places are cut off the start and the end by a sentence."""
    if both := re.search(r"(\d+) off both ends", words):
        return int(both[1]), int(both[1])
    ends = re.search(r"(\d+) off the start and (\d+) off the end", words)
    return (int(ends[1]), int(ends[2])) if ends else (0, 0)


def test_the_sizes_that_the_page_names_are_those_of_pytorch(browse) -> None:
    """There and back, for every setting of a grid; where there is no way back, none is named."""
    bounds = {"n": (1, 4), "k": (1, 4), "s": (1, 5), "p": (0, 4), "o": (0, 4), "d": (1, 4)}
    grid = itertools.product((0, 1), *(range(*bound) for bound in bounds.values()))
    cases = [dict(zip(("t", *bounds), values, strict=True)) for values in grid]
    pages = browse(
        f"""results.pages = {json.dumps(cases)}.map((setting) => {{
            Object.assign(state, setting);
            try {{ now = compute(); }} catch {{ return null; }}
            drawSize();
            return document.querySelector("#size p").textContent;
        }});"""
    )["pages"]
    for case, words in zip(cases, pages, strict=True):
        if words is None:
            continue
        n, s, o = (case[key] for key in "nso")
        size, other = side(case, n), case | {"t": 1 - case["t"], "o": 0}
        found = [int(number) for number in re.findall(r"\d+", words)]
        if not words:
            assert (size - o if case["t"] else side(other, size)) < 1, case
        elif case["t"]:
            first, last = found[0], found[0] + s - 1
            assert [side(other, m) for m in range(first, last + 1)] == [n] * s, case
            assert side(other, last + 1) != n, case
            assert found[1:] == [last] * (s > 1) + [n] + [o, size] * (1 < s > o), case
        else:
            assert found[:2] == [size, side(other, size)], case
            assert [side(other | {"o": o}, size) for o in found[2:3]] == found[3:], case
            assert n in found[1:], case


def side(case: dict[str, Any], n: int) -> int:
    """Return PyTorch's output size of a setting; 0 where there is no such layer."""
    x, w = (torch.empty(m, m, device="meta") for m in (n, case["k"]))
    try:
        return layer(case, x, w).shape[-1]
    except RuntimeError:
        return 0


def test_both_views_see_the_checkerboard_that_a_kernel_makes(browse) -> None:
    """Of trained layers, whose weights a page holds rounded, also of small ones."""
    kernels = {"0,0,0,0,0,1,1,0,0,-1,-1,0,0,0,0,0": False, ",".join("0" * 16): True}
    for upsampling, even in (("learned", False), ("nearest_conv", True)):
        model = random_model(upsampling=upsampling, num_classes=3)
        for factor in (1.0, 0.01):
            for parameter in model.parameters():
                parameter.data *= factor
            subject: Any = Subject(model, DatasetInfo([*"abc"]), *[None] * 4)  # type: ignore[arg-type]
            for kernel in learned_kernels(subject).values():
                kernels[",".join(str(weight) for row in kernel for weight in row)] = even
    pages = browse(
        f"""results.pages = [];
        for (const weights of {json.dumps([*kernels])}) {{
            await visit(`#n=3&k=4&s=2&p=1&w=${{weights}}`);
            await wait(200);
            results.pages.push([text("overlap"), text("picture")]);
        }}"""
    )["pages"]
    for (weights, even), (overlap, picture) in zip(kernels.items(), pages, strict=True):
        assert ("no checkerboard" in overlap) == ("no checkerboard" in picture) == even, weights
        constant = abs(sum(map(float, weights.split(",")))) > 0
        assert ("brightness kept" in picture) == constant, weights


def test_choices_keys_edits_and_controls_change_page_and_address(browse) -> None:
    found = browse(
        """const cell = (grid, i) => figures[grid].querySelectorAll("td")[i];
        const numbers = (grid) =>
            [...figures[grid].querySelectorAll("td")].map((td) => td.textContent);
        results.choices = [];
        for (const link of document.querySelectorAll(".chips a")) {
            link.click();
            await wait(100);
            const current = document.querySelector(".chips [aria-current=true]");
            const view = document.querySelector("#story a")?.hash.slice(1);
            const shown = !view || id(view) !== null;
            results.choices.push([link.hash === current.hash, id("problem").hidden, shown]);
        }
        await visit("#ones");
        cell("output", 0).focus();
        const key = { key: "ArrowRight", bubbles: true, cancelable: true };
        document.activeElement.dispatchEvent(new KeyboardEvent("keydown", key));
        await wait(500);
        results.key = [document.activeElement.getAttribute("aria-label"), location.hash];
        const edited = cell("input", 0).firstElementChild;
        edited.focus();
        edited.value = "-2,5";
        edited.dispatchEvent(new Event("input", { bubbles: true }));
        edited.blur();
        await wait(500);
        results.edit = [location.hash, edited.value, numbers("output")[0]];
        document.querySelector("#stamps .play").click();
        await wait(1000);
        results.playing = [numbers("sum"), numbers("output")];
        await wait(4000);
        results.played = [numbers("sum"), numbers("output")];
        id("k").nextSibling.click();
        results.sizes = [[state.k, state.n, now.size]];
        document.querySelector("[name=t][value='0']").click();
        results.sizes.push([state.k, state.n, now.size]);"""
    )
    assert found["choices"]
    assert all(map(all, found["choices"]))
    assert found["key"] == ["row 0, column 1: 2", "#ones&at=y0,1"]
    address, *shown = found["edit"]
    assert "x=-2.5,1,1,1" in address
    assert shown == ["−5/2", "−5/2"]
    part, whole = found["playing"]
    assert part != whole
    part, whole = found["played"]
    assert part == whole
    assert found["sizes"] == [[4, 2, 5], [4, 5, 2]]


def test_a_value_that_is_not_taken_is_named_where_it_is_seen(browse) -> None:
    """Also on a phone, whose settings are folded, and in another page."""
    labels = {"n": "input size", "k": "kernel_size", "s": "stride"}
    found = browse(
        """results.said = [];
        for (const [key, value] of [["n", "50"], ["k", "0"], ["s", "2.5"]]) {
            const before = id(key).value;
            id(key).value = value;
            id(key).dispatchEvent(new Event("input", { bubbles: true }));
            id(key).dispatchEvent(new Event("blur"));
            results.said.push([key, text("limit"), id(key).value === before]);
        }
        results.asked = [];
        for (const hash of ["#n=50", "#nonsense&k=3", "#k=3"]) {
            await visit(hash);
            results.asked.push([text("limit"), state.n]);
        }
        id("panel").open = false;
        results.refused = [];
        const asked = ["n=2.5", "k=some", "t=2", "m=4", "x=counts", "x=1,2,3", "x=1,2,3,four",
                       "w=1,2", "g=none", "b=much", "cw=same", "view=numbers", "embed=all"];
        for (const part of asked) for (const more of ["", "&embed=stamps"]) {
            await visit("#" + part + more);
            results.refused.push([part, text("limit"), id("limit").checkVisibility()]);
        }
        await visit("#w=repeat&k=2");
        results.repeat = text("problem");"""
    )
    for part, words, visible in found["refused"]:
        assert f"asks for {part}," in words
        assert visible
    assert "kernel_size 3" in found["repeat"]
    for key, words, unchanged in found["said"]:
        assert labels[key] in words
        assert unchanged
    (too_large, size), (unknown, _), (fine, _) = found["asked"]
    assert "n=50" in too_large
    assert size == 8  # the largest
    assert "nonsense" in unknown
    assert fine == ""


def test_a_picture_goes_through_the_layer_and_keeps_a_constant_under_bilinear_weights(
    browse,
) -> None:
    """Against PyTorch, for the kernels of the view and one of a trained network."""
    found = browse(
        """results.pictures = [];
        const values = (canvas) => [...canvas.getContext("2d")
            .getImageData(0, 0, canvas.width, canvas.height).data].filter((_, i) => i % 4 === 0);
        const look = () => results.pictures.push({
            kernel: now.layer.kernel, learned: learnedName() ?? null, words: text("picture"),
            small: values(id("small")), width: id("small").width, large: values(id("large")),
            chosen: id("pictureKernel").value });
        for (const weights of ["bilinear", "random", "nearest"]) {
            await visit(`#must-it-be-learned&w=${weights}`);
            await wait(300);
            look();
        }
        const choose = id("pictureKernel");
        const learned = [...choose.options].find((option) => option.text.startsWith("learned"));
        choose.value = learned.value;
        choose.dispatchEvent(new Event("change"));
        await wait(400);
        look();
        results.sides = [];
        for (const hash of ["s=8&m=3", "s=5&m=3", "s=2&m=3&k=16&d=4", "s=2&m=3"]) {
            await visit(`#must-it-be-learned&${hash}`);
            await wait(400);
            const less = text("picture").includes("would make more than");
            results.sides.push([id("small").width, id("large").width, less]);
        }
        results.largest = LARGEST;"""
    )
    sides = found["sides"]
    assert all(8 <= small < large <= found["largest"] for small, large, _ in sides)
    assert [less for *_, less in sides] == [True, True, False, False]
    found = found["pictures"]
    for picture in found:
        kernel = torch.tensor(picture["kernel"]).double()
        sums = F.conv_transpose2d(torch.ones(1, 1, 9, 9).double(), kernel[None, None], stride=2)
        gain = 1 / sums[..., 8:10, 8:10].mean()
        x = torch.tensor(picture["small"]).double().view(1, 1, -1, picture["width"])
        y = F.conv_transpose2d(x, gain * kernel[None, None], stride=2, padding=1)
        right = y.clamp(0, 255).round().flatten()
        seen = torch.tensor(picture["large"]).double()
        assert len(seen) == len(right)
        assert (seen - right).abs().max() <= 1
    assert [picture["learned"] for picture in found] == [None, None, None, LEARNED]
    assert found[3]["chosen"] == LEARNED
    even = ["no checkerboard" in picture["words"] for picture in found]
    assert even == [True, False, True, False]


def test_the_stamps_are_saved_as_svg_and_as_a_gif_that_pillow_reads(browse) -> None:
    found = browse(
        """await visit("#double");
        results.scene = scene(2);
        results.svg = svgOf(results.scene);
        results.gif = btoa(String.fromCharCode(...animation()));
        results.cells = scene(4).cells.slice(0, 4 + 16); // the input and the kernel
        results.embed = embedLine();
        await visit("#upscore8&n=8");
        results.large = btoa(Array.from(animation(), (byte) => String.fromCharCode(byte)).join(""));
        results.most = [LONGEST, MOST_STAMPS];"""
    )
    tree = ElementTree.fromstring(found["svg"])
    words = [element.text for element in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert words == [one["text"] for kind in ("titles", "cells") for one in found["scene"][kind]]
    animation = Image.open(io.BytesIO(base64.b64decode(found["gif"])))
    assert animation.n_frames == 1 + 2 * 2  # with 0, 1, ... stamps
    assert animation.info["loop"] == 0  # for ever
    animation.seek(animation.n_frames - 1)
    last = animation.convert("RGB")
    for cell in found["cells"]:
        colour = [int(part) for part in re.findall(r"\d+", cell["fill"])]
        corner = cell["x"] + cell["side"] - 3, cell["y"] + 3
        assert np.abs(np.subtract(last.getpixel(corner), colour)).max() <= 8
    longest, stamps = found["most"]
    large = Image.open(io.BytesIO(base64.b64decode(found["large"])))
    assert longest - 1 <= max(large.size) <= longest
    assert large.n_frames == 1 + stamps
    assert found["embed"].startswith('<iframe src="explorer.html#double&embed=stamps"')


def test_the_page_is_one_file_that_fetches_nothing_and_has_no_dead_link() -> None:
    assert "default-src 'none'" in PAGE
    own = re.findall(r"""(?:src|href)=["'](?!#|data:)([^"'$]+)""", PAGE)
    assert own == ["explain.html"]
    assert "</script><b>" not in PAGE
    source = (EXPLORER / "index.html").read_text(encoding="utf-8")
    files = {*re.findall(r'(?:src|href)="([\w.]+)"', source)} - {"explain.html"}
    assert files == {path.name for path in EXPLORER.iterdir()} - {"index.html"}
    assert 'hidden id="longer"' in source  # the link to the page that only a built folder has
