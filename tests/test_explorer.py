"""The page explorer.html in headless Chromium: what it computes and shows, against PyTorch."""

import html
import json
import math
import random
import re
import shutil
import subprocess
from importlib import resources
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

PAGE = resources.files("fcn").joinpath("explain/explorer.html").read_text(encoding="utf-8")

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
const GRIDS = "input kernel sum spread turned output repeated three convolved forward back "
  + "gradOutput gradInput gradKernel counts phases";
const figures = Object.fromEntries([...document.querySelectorAll(".panels figure:not(#frequency)")]
  .map((figure, i) => [GRIDS.split(" ")[i], figure]));
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
    if (figure.closest("[hidden]")) continue;
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
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
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
    return float(text.replace("−", "-"))


def assert_equal(table: list[list[list[str]]], numbers: Tensor, about: str) -> None:
    """Check a table's exact numbers to 1e-6 and its short ones to two digits."""
    exact = np.array([[parse(label) for label, _ in row] for row in table])
    short = np.array([[parse(text) for _, text in row] for row in table])
    np.testing.assert_allclose(exact, numbers.numpy(), rtol=0, atol=1e-6, err_msg=about)
    digits = np.floor(np.log10(np.abs(exact) + (exact == 0)))
    assert (np.abs(short - exact) <= 0.5001 * 10 ** (digits - 1)).all(), about


def test_all_numbers_of_300_random_settings_are_those_of_pytorch(browse) -> None:
    cases = [settings(seed) for seed in range(300)]
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
    assert 150 < possible < 290
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
    phases, taps = right["phases"], right["kernel"].sum(0).numpy()
    found = re.search(r"range is (\S+) %", page["overlap"])
    ripple = float((phases.max() - phases.min()) / phases.mean().abs())
    if found:
        assert parse(found[1]) == pytest.approx(100 * ripple, rel=0.006)
    else:
        assert ripple < 1e-8 or phases.mean().abs() < 1e-8
    unit = abs(taps.sum()) if abs(taps.sum()) > 1e-9 else 1
    for shown, m, s in re.findall(r"(\S+) at (\d)/(\d)", page["gains"]):
        phase = 2j * np.pi * int(m) / int(s) * case["d"] * np.arange(len(taps))
        gain = abs(np.exp(-phase) @ taps) / unit
        assert parse(shown) == pytest.approx(gain, rel=0.006, abs=1e-6)


def check_code(code: str, output: Tensor) -> None:
    """Run the PyTorch lines that the page shows."""
    printed: list[Tensor] = []
    exec(code, {"print": printed.append})
    torch.testing.assert_close(printed[0].double(), output, rtol=1e-4, atol=2e-2)


def test_explore_takes_rectangles_and_a_given_output_gradient(browse) -> None:
    draw = np.random.default_rng(0)
    x, w, dy = (draw.normal(size=size).round(3) for size in ((3, 2), (2, 4), (7, 6)))
    given = {"transposed": True, "input": x, "kernel": w, "stride": 3, "padding": 1}
    given |= {"outputPadding": 1, "gradOutput": dy}
    given = {key: getattr(value, "tolist", lambda v=value: v)() for key, value in given.items()}
    found = browse(f"results.found = explore({json.dumps(given)});")["found"]
    x, w = torch.tensor(x, requires_grad=True), torch.tensor(w, requires_grad=True)
    y = F.conv_transpose2d(x[None, None], w[None, None], stride=3, padding=1, output_padding=1)[
        0, 0
    ]
    dx, dw = torch.autograd.grad(y, (x, w), torch.tensor(dy))
    assert found["size"] == [7, 6]
    for name, right in {"output": y, "gradInput": dx, "gradKernel": dw}.items():
        np.testing.assert_allclose(found[name], right.detach().numpy(), atol=1e-12, err_msg=name)
    product = np.array(found["matrix"]) @ x.detach().numpy().ravel()
    np.testing.assert_allclose(product, y.detach().numpy().ravel(), atol=1e-12)


IMPOSSIBLE = {
    "stride: 0": "stride",
    "padding: 1.5": "padding",
    "transposed: false, outputPadding: 1": "convolution has no output padding",
    "outputPadding: 2, stride: 2": "smaller than the stride",
    "padding: 5": "Nothing would be left",
    "transposed: false, dilation: 2": "does not fit",
    "input: [[1, 2], [3]]": "one length",
    "gradOutput: [[1]]": "4 × 4",
}


def test_an_impossible_setting_is_an_error_that_explains_it(browse) -> None:
    settings = "".join(f"{{ ...ones, {change} }}," for change in IMPOSSIBLE)
    messages = browse(
        f"""const rows = (side) => Array(side).fill(Array(side).fill(1));
        const ones = {{ transposed: true, input: rows(2), kernel: rows(3) }};
        results.messages = [{settings}].map((setting) => {{
            try {{ explore(setting); }} catch (error) {{ return error.message; }}
        }});"""
    )["messages"]
    for message, word in zip(messages, IMPOSSIBLE.values(), strict=True):
        assert word in message


def test_presets_play_and_keys_change_page_and_address(browse) -> None:
    found = browse(
        """const press = (key) => document.activeElement.dispatchEvent(
            new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
        const focused = () => document.activeElement.getAttribute("aria-label");
        const cell = (grid, i) => figures[grid].querySelectorAll("td")[i];
        const lit = (grid) => figures[grid].querySelectorAll(".lit, .on").length;
        results.presets = [];
        for (const link of document.querySelectorAll("#presets a")) {
            link.click();
            await wait(100);
            const current = document.querySelector("#presets [aria-current=true]");
            results.presets.push([link.hash, current.hash, id("problem").hidden]);
        }
        await visit("#preset=ones");
        cell("output", 0).focus();
        press("ArrowRight");
        press("ArrowDown");
        await wait(500);
        results.keys = [focused(), text("readout"), location.hash];
        results.lit = ["input", "kernel", "forward"].map(lit);
        press("Escape");
        results.cleared = lit("input");
        const edited = cell("input", 0).firstElementChild;
        edited.focus();
        edited.value = "-2,5";
        edited.dispatchEvent(new Event("input", { bubbles: true }));
        edited.blur();
        await wait(500);
        results.edit = [location.hash, edited.value, cell("output", 0).textContent];
        document.querySelector("#stamps .play").click();
        await wait(1000);
        results.playing = text("stamps").includes("of 4 stamps");
        await wait(4000);
        results.played = [text("stamps").includes("of 4 stamps"), cell("sum", 0).textContent];
        id("k").nextSibling.click();
        await wait(500);
        results.stepped = [text("summary"), location.hash];
        document.querySelector("[name=t][value='0']").click();
        results.turned = text("summary");"""
    )
    for link, current, possible in found["presets"]:
        assert link == current
        assert possible
    assert len(found["presets"]) == 11
    assert found["keys"][0] == "row 1, column 1: 4"
    sum_of_four = "x[0,0]·w[1,1] + x[0,1]·w[1,0] + x[1,0]·w[0,1] + x[1,1]·w[0,0]"
    assert found["keys"][1] == f"y[1,1] = {sum_of_four} = 1·1 + 1·1 + 1·1 + 1·1 = 4"
    assert found["keys"][2] == "#preset=ones&at=y1,1"
    assert found["lit"] == [4, 4, 4]
    assert found["cleared"] == 0
    assert found["edit"] == ["#x=-2.5,1,1,1&at=x0,0", "−2.5", "−2.5"]
    assert found["playing"]
    assert found["played"] == [False, "−2.5"]
    assert found["stepped"] == ["2 × 2 in, 5 × 5 out", "#k=4&x=-2.5,1,1,1"]
    assert found["turned"] == "5 × 5 in, 2 × 2 out"


def test_the_page_is_one_small_file_that_fetches_nothing() -> None:
    assert len(PAGE.encode()) <= 60_000
    assert "default-src 'none'" in PAGE
    assert re.findall(r"""(?:src|href)=["'](?!#|data:|explain\.html)[^"']*""", PAGE) == []
