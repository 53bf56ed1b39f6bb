import json
import subprocess
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fcn.config import REPOSITORY, AblateConfig
from fcn.training.ablation import Cell, collect, grid, table
from tests.conftest import TinyVOC
from tests.test_fcn import small


def settings(**changes: object) -> AblateConfig:
    given = {"models": ["fcn32s"], "upsamplings": ["fixed", "learned"], "seeds": [0, 1]} | changes
    return AblateConfig(**given)  # type: ignore[arg-type]


def leave(cell: Cell, mean_iou: float, trimap: float) -> None:
    """A cell's metrics.json, as far as the table reads it."""
    model = small(stride=32, upsampling=cell.upsampling)
    cell.folder.mkdir(parents=True)
    content = {
        "mean_iou": mean_iou,
        "trimap": [0.0, 0.0, trimap, 1.0],
        "protocol": {
            "model": model.arguments, "data": "x", "split": "val", "ids_sha256": "", "images": 1,
        },
        "classes": [{"name": "a", "pixels": 0}],
        "confusion": [[0]],
    }  # fmt: skip
    (cell.folder / "metrics.json").write_text(json.dumps(content))
    (cell.folder / "model.safetensors").touch()


def test_rows_pair_runs_of_one_seed(tmp_path: Path) -> None:
    cells = grid(settings(), tmp_path)
    assert [cell.name for cell in cells] == [
        "fcn32s fixed seed 0", "fcn32s learned seed 0",
        "fcn32s fixed seed 1", "fcn32s learned seed 1",
    ]  # fmt: skip
    for cell, value in zip(cells[:3], (0.5, 0.75, 0.25), strict=True):
        leave(cell, value, value / 2)
    assert [cell.done for cell in cells] == [True, True, True, False]
    fixed, learned = collect(cells, {("fcn32s", "learned"): 0.1})
    assert (fixed.mean_iou, fixed.from_first, fixed.parameters) == ([0.5, 0.25], [0, 0], 0)
    assert (learned.mean_iou, learned.from_first) == ([0.75], [0.25])
    assert (learned.trimap, learned.step_seconds) == ([0.375], 0.1)
    assert learned.parameters == 5 * 5 * 64 * 64
    shown = [list(column.cells) for column in table([fixed, learned], "fixed").columns]
    assert shown[2] == ["37.5 (25.0..50.0)", "75.0 (75.0..75.0)"]
    assert shown[3] == ["+0.0 (+0.0 +0.0)", "+25.0 (+25.0)"]


def test_a_baseline_that_failed_is_no_other_ones(tmp_path: Path) -> None:
    cells = grid(settings(), tmp_path)
    for cell in (cells[1], cells[2], cells[3]):  # fixed of seed 0 failed
        leave(cell, 0.5, 0.25)
    fixed, learned = collect(cells, {})
    assert (fixed.upsampling, learned.upsampling) == ("fixed", "learned")
    assert (fixed.from_first, learned.from_first) == ([0], [0])


def test_the_script_goes_on_where_runs_failed(tiny_voc: TinyVOC, tmp_path: Path) -> None:
    """Two cells on a missing folder, then on a real one; and again, when all is done."""
    recipe = ["recipe.max_steps=3", "recipe.val_every=1", "recipe.batch_size=2", "recipe.crop=32"]

    def ablate(*overrides: str) -> subprocess.CompletedProcess[str]:
        given = ",".join(f'"{override}"' for override in (*recipe, *overrides))
        command = [
            sys.executable, str(REPOSITORY / "scripts" / "ablate.py"), "models=[fcn32s]",
            "upsamplings=[fixed,learned]", "seeds=[0]", "jobs=2", "time_rounds=1",
            f"hydra.run.dir={tmp_path / 'grid'}", f"overrides=[{given}]",
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, check=False)

    failed = ablate("data=voc2012", f"data.root={tmp_path / 'nowhere'}")
    assert failed.returncode == 1
    assert "2 of 2 runs failed" in failed.stderr
    assert "no such data set" in failed.stdout
    overrides = [o.replace('"', "") for o in tiny_voc.overrides()]
    done = ablate(*overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "grid" / "ablation.json").read_text())["rows"]
    assert [row["upsampling"] for row in rows] == ["fixed", "learned"]
    assert all(row["step_seconds"] > 0 and len(row["mean_iou"]) == 1 for row in rows)
    assert (tmp_path / "grid" / "ablation.png").is_file()
    run = tmp_path / "grid" / "fcn32s_learned_0"
    board = EventAccumulator(str(run), {"images": 0}).Reload()
    drift = [point.value for point in board.Scalars("drift from bilinear/upscore")]
    assert len(drift) == 3
    assert drift[0] == 0 < drift[-1]  # scores of zero give kernels no gradient
    assert len(board.Images("kernels/upscore")) == 3
    weights = (run / "model.safetensors").stat().st_mtime_ns
    other = ablate(*overrides, "recipe.lr=0.5")
    assert "was trained with other settings (recipe.lr=0.5); choose another" in other.stderr
    again = ablate(*overrides)
    assert "2 of 2 runs are done already" in again.stdout
    assert (run / "model.safetensors").stat().st_mtime_ns == weights
