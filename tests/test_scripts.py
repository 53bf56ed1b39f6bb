"""The commands as a user types them: what they refuse, with which words, and what they leave."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fcn.config import REPOSITORY, SCHEMAS, CommonConfig
from fcn.inference import checkpoint
from fcn.models.fcn import FCN
from tests.conftest import TinyVOC, refusal

QUICK = ["backbone.width=4", "backbone.head_width=8", "recipe.crop=32", "recipe.batch_size=2"]
QUICK += ["recipe.max_steps=2", "recipe.val_every=2", "trainer=cpu", "recipe.precision=32-true"]


def script(name: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs `python scripts/NAME.py ARGUMENTS` in `folder`."""
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / f"{name}.py"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def damage_size(data: TinyVOC) -> str:
    Image.new("L", (9, 9)).save(data.mask("v0"))
    return "v0.png: mask is 9 x 9 but its image"


def damage_label(data: TinyVOC) -> str:
    Image.new("L", (40, 50), 37).save(data.mask("v0"))
    return "v0.png: label 37 is out of range"


def damage_jpeg(data: TinyVOC) -> str:
    data.image("t1").write_bytes(b"\xff\xd8\xff\xe0 no jpeg")
    return "t1.jpg: unreadable image"


@pytest.mark.parametrize("damage", [damage_size, damage_label, damage_jpeg])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_ends_training_with_its_name(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tiny_voc: TinyVOC,
    damage: object,
    workers: int,
) -> None:
    monkeypatch.chdir(tiny_voc.root)
    message = damage(tiny_voc)  # type: ignore[operator]
    overrides = [o for o in tiny_voc.overrides() if "num_workers" not in o]
    error = refusal(capsys, "train", *overrides, *QUICK, f"data.num_workers={workers}")
    assert message in error


def test_train_then_evaluate_then_go_on(tiny_voc: TinyVOC) -> None:
    """A run in its own process: its files, the same numbers from evaluate, and nothing lost."""
    data, root = tiny_voc.overrides(), tiny_voc.root
    first = script("train", *data, *QUICK, "hydra.run.dir=run", folder=root)
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    last_line = first.stdout.strip().splitlines()[-1]
    assert last_line.startswith("mean IoU ")
    assert last_line.endswith(("files in run", "/run"))
    metrics = json.loads((root / "run" / "metrics.json").read_text())

    for name in ("checkpoints/best.ckpt", "model.safetensors"):
        again = script(
            "evaluate", *data, f"checkpoint=run/{name}", "hydra.run.dir=eval", folder=root
        )
        assert again.returncode == 0, again.stderr
        assert json.loads((root / "eval" / "metrics.json").read_text()) == metrics

    done = script("report", "runs=[run,eval]", "output=pages/r.html", "images=2", folder=root)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "eval − run" in (root / "pages" / "r.html").read_text(encoding="utf-8")

    before = (root / "run" / "checkpoints" / "last.ckpt").read_bytes()
    over = script("train", *data, *QUICK, "hydra.run.dir=run", folder=root)
    assert over.returncode == 1
    assert "run holds a run already; resume=last goes on" in over.stderr
    assert (root / "run" / "checkpoints" / "last.ckpt").read_bytes() == before

    more = ["recipe.max_steps=4", "resume=run/checkpoints/last.ckpt"]  # the rest is remembered
    on = script("train", *more, folder=root)
    assert on.returncode == 0, on.stderr
    assert "step 4/4" in on.stdout
    assert not (root / "outputs").exists()  # it went on in its own folder
    other = script("train", *more, "model=fcn16s", folder=root)
    assert "its model differs in stride" in other.stderr


def test_a_split_without_masks_is_predicted_not_judged(tiny_voc: TinyVOC) -> None:
    root, folder = tiny_voc.root, tiny_voc.root / "VOC2012"
    tiny_voc.listing("test").write_text("x0\n")
    shutil.copy(tiny_voc.image("v0"), tiny_voc.image("x0"))
    tiny_voc.folder.rename(folder)
    model = FCN(stride=32, num_classes=3, backbone="mini", width=4, head_width=8)
    checkpoint.write_safetensors(root / "m.safetensors", model, {"classes": tiny_voc.classes})
    test = [*tiny_voc.overrides(), "data.folder=VOC2012", "data.split=test"]
    test += ["checkpoint=m.safetensors", "hydra.run.dir=run"]
    refused = script("evaluate", *test, folder=root)
    assert refused.returncode == 1
    assert "no masks to judge by; submission=true writes" in refused.stderr
    done = script("evaluate", *test, "submission=true", folder=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("run/results.tar.gz")
    written = {path.name for path in (root / "run").iterdir()}
    assert written == {".hydra", "results", "results.tar.gz"}
    other = [*test[:-3], "data.split=val", *test[-2:], "data.folder=elsewhere", "submission=true"]
    assert "submission=true is for Pascal VOC" in script("evaluate", *other, folder=root).stderr


def test_stages_train_one_from_the_other(tiny_voc: TinyVOC) -> None:
    arguments = [*tiny_voc.overrides(), *QUICK, "stages=[fcn32s,fcn16s,fcn8s]", "hydra.run.dir=run"]
    done = script("train", *arguments, folder=tiny_voc.root)
    assert done.returncode == 0, done.stderr
    stages = json.loads((tiny_voc.root / "run" / "stages.json").read_text())
    assert list(stages) == ["fcn32s", "fcn16s", "fcn8s"]
    assert [s["protocol"]["model"]["stride"] for s in stages.values()] == [32, 16, 8]
    assert re.search(r"^ *fcn8s +fcn16s +[\d.]+", done.stdout, re.M)
    again = script("train", *arguments, "resume=last", folder=tiny_voc.root)
    assert again.returncode == 0, again.stderr
    assert "step" not in again.stdout.replace("steps", "")  # all was done
    assert json.loads((tiny_voc.root / "run" / "stages.json").read_text()) == stages


def test_the_newest_run_goes_on(tiny_voc: TinyVOC) -> None:
    """`resume=last` alone: its folder and its settings, a path that wants quotes among them."""
    root = tiny_voc.root
    settings = [*tiny_voc.overrides(), *QUICK, "seed=3"]
    first = script("train", *settings, folder=root)
    assert first.returncode == 0, first.stderr
    on = script("train", "resume=last", "recipe.max_steps=3", folder=root)
    assert on.returncode == 0, on.stderr
    assert "step 3/3" in on.stdout
    assert "weights     random" in first.stdout
    assert "weights     random" not in on.stdout
    (run,) = (root / "outputs" / "train").iterdir()
    run.rename(moved := root / "lr=0.1, it's")
    quoted = str(moved / "checkpoints" / "last.ckpt").replace("'", "\\'")
    on = script("train", f"resume='{quoted}'", "recipe.max_steps=5", folder=root)
    assert on.returncode == 0, on.stderr
    assert "step 5/5" in on.stdout
    about = checkpoint.read(moved / "model.safetensors").about
    assert about["seed"] == 3


def test_whole_images_go_in_batches(tiny_voc: TinyVOC) -> None:
    whole = ["recipe.crop=null", "recipe.scale=[1.0,1.0]", "recipe.batch_size=3"]
    done = script("train", *tiny_voc.overrides(), *QUICK, *whole, folder=tiny_voc.root)
    assert done.returncode == 0, done.stderr


def test_prepare_data_reports_and_says_whether_training_would_fail(
    tiny_voc: TinyVOC, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*tiny_voc.overrides(), "hydra.run.dir=look", "processes=2"]
    done = script("prepare_data", *arguments, folder=tiny_voc.root)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "data=tiny can be trained on; files in " in done.stdout.splitlines()[-1]
    report = json.loads((tiny_voc.root / "look" / "report.json").read_text())
    assert [report["splits"][s]["images"] for s in ("train", "val")] == [4, 2]
    assert report["problems"] == []
    with Image.open(tiny_voc.root / "look" / "contact_sheet.png") as sheet:
        assert sheet.width == 1400

    monkeypatch.chdir(tiny_voc.root)
    messages = [damage_size(tiny_voc), damage_jpeg(tiny_voc)]
    tiny_voc.listing("val").write_text("v0\nv1\nt2\n")
    error = refusal(capsys, "prepare_data", *arguments[:-1], "processes=1")
    assert "data=tiny cannot be trained on as it is: 3 problems" in error
    problems = json.loads((tiny_voc.root / "look" / "report.json").read_text())["problems"]
    for message in (*messages, "t2 is in both train and val"):
        assert sum(message in problem for problem in problems) == 1


def test_data_are_fetched_before_training_and_evaluation(
    tiny_voc: TinyVOC, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both go to data.url for what is missing; here, to a folder that holds nothing."""
    monkeypatch.chdir(tiny_voc.root)
    done = script("train", *tiny_voc.overrides(), *QUICK, "hydra.run.dir=run", folder=tiny_voc.root)
    assert done.returncode == 0, done.stderr
    voc = [f"data.root={tiny_voc.root / 'new'}", "data=voc2012", "data.download=true"]
    voc.append(f"data.url={tiny_voc.root}/")
    for name, more in (
        ("train", QUICK),
        ("evaluate", ["checkpoint=run/model.safetensors"]),
        ("prepare_data", []),
    ):
        error = refusal(capsys, name, *voc, *more)
        assert "VOCtrainval_11-May-2012.tar could not be fetched" in error
        assert f"put it at {tiny_voc.root}/new/VOCtrainval_11-May-2012.tar" in error


@pytest.mark.parametrize(
    "name", [path.stem for path in sorted((REPOSITORY / "scripts").glob("*.py"))]
)
def test_help_helps(name: str, tmp_path: Path) -> None:
    shown = script(name, "--help", folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert f"python scripts/{name}.py" in shown.stdout
    assert ("data: " in shown.stdout) == issubclass(SCHEMAS[name], CommonConfig)


def test_going_on_leaves_out_what_only_the_first_start_wants(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    recorded = tmp_path / ".hydra" / "overrides.yaml"
    recorded.write_text("- model=fcn16s\n- model.init_from=a.ckpt\n- recipe.max_steps=4\n")
    continued = runpy.run_path(str(REPOSITORY / "scripts" / "train.py"))["continued"]
    given = [f"hydra.run.dir={tmp_path}", "resume=last", "recipe.max_steps=9"]
    assert continued(given) == ["model=fcn16s", *given]
    recorded.write_text("- stages=[fcn32s,fcn16s]\n- model.init_from=a.ckpt\n")  # of the first one
    assert continued(given) == ["stages=[fcn32s,fcn16s]", "model.init_from=a.ckpt", *given]
