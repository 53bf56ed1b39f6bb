"""run.json: what a run's numbers depend on; rerun comes to the same, or says why not."""

import json
import runpy
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from fcn.config import REPOSITORY, UserError
from fcn.training import record
from fcn.training.run import train
from tests.conftest import TinyVOC
from tests.test_safekeeping import same_end
from tests.test_training import config, quiet


def test_a_run_done_again_ends_the_same_and_says_what_differed(
    tiny_voc: TinyVOC, tmp_path: Path
) -> None:
    cfg = config(tiny_voc)
    train(cfg, tmp_path / "first", quiet())
    before = record.read(tmp_path / "first")
    assert before["config"]["recipe"]["lr"] == 1e-3
    assert before["data"]["train"]["images"] == 4
    assert before["versions"]["torch"]
    assert before["machine"]["cores"]
    cfg.rerun = str(tmp_path / "first")
    with (console := Console(width=300)).capture() as said:
        train(cfg, tmp_path / "again", console)
    assert "the same settings, data, versions and commit as the first run" in said.get()
    assert "the same, to the last pixel, as" in said.get()
    assert same_end(tmp_path / "again", tmp_path / "first")

    cfg.recipe.lr = 2e-3
    image = tiny_voc.image("t0")
    image.write_bytes(image.read_bytes() + b"\0")
    with (console := Console(width=300)).capture() as said:
        train(cfg, tmp_path / "changed", console)
    lines = [line for line in said.get().splitlines() if line.startswith("differs")]
    assert any("config.recipe.lr: 0.002, was 0.001" in line for line in lines)
    assert any("data." in line and ".bytes: " in line for line in lines)


def test_the_commit_is_the_repositorys_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    monkeypatch.setattr(record, "REPOSITORY", tmp_path)
    assert record.commit() is None
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("one")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert record.commit() == head.strip()
    (tmp_path / "file").write_text("two")
    assert record.commit() == head.strip() + "+changes"


def test_rerun_starts_with_what_the_run_was_first_started_with(tmp_path: Path) -> None:
    continued = runpy.run_path(str(REPOSITORY / "scripts" / "train.py"))["continued"]
    first = ["seed=3", "model.init_from=net.ckpt", "recipe.lr=0.1"]
    (tmp_path / "run.json").write_text(json.dumps({"overrides": first}))
    line = continued([f"rerun={tmp_path}", "seed=4"])
    assert line == [*first[1:], f"rerun={tmp_path}", "seed=4"]
    for bad in (["hydra.run.dir=/"], ["stages=[fcn32s,fcn16s]"], {}, None, ["hydra/launcher=x"]):
        (tmp_path / "run.json").write_text(json.dumps({"overrides": bad}))
        with pytest.raises(UserError):
            continued([f"rerun={tmp_path}"])


@pytest.mark.parametrize("content", [None, "", "[]", '{"config"'])
def test_a_folder_without_a_record_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"rerun=.*run\.json"):
        record.read(tmp_path)
