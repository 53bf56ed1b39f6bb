"""Folds: every image is validated once, groups stay together, and a run knows its own fold."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fcn.data.dataset import check_overlap
from fcn.data.groups import check_pattern, draw_folds, group_in
from fcn.data.layouts import open_split
from fcn.data.shards import write_shards
from fcn.errors import ConfigError, DataError
from tests.conftest import QUICK, TinyVOC

ALL = ["t0", "t1", "t2", "t3", "v0", "v1"]


def groups_of(seed: int) -> list[str]:
    draws = random.Random(seed)
    return [f"film{draws.randrange(12)}" for _ in range(draws.randrange(40, 90))]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_keep_groups_together_and_are_balanced(folds: int, seed: int) -> None:
    groups = groups_of(seed)
    drawn = draw_folds(groups, folds, seed)
    assert len(set(zip(groups, drawn, strict=True))) == len(set(groups))
    sizes, largest = Counter(drawn), max(Counter(groups).values())
    assert sorted(sizes) == list(range(folds))
    assert max(sizes.values()) - min(sizes.values()) <= largest
    alone = Counter(draw_folds([str(number) for number in range(len(groups))], folds, seed))
    assert max(alone.values()) - min(alone.values()) <= 1


def test_folds_depend_on_names_and_seed_alone() -> None:
    groups = groups_of(0)
    by_name = dict(zip(groups, draw_folds(groups, 3, 0), strict=True))
    backwards = draw_folds(groups[::-1], 3, 0)
    assert all(by_name[g] == fold for g, fold in zip(groups[::-1], backwards, strict=True))
    assert draw_folds(groups, 3, 1) != draw_folds(groups, 3, 0)


@pytest.mark.parametrize(
    ("name", "group", "found"),
    [
        ("train/a_jpg.rf.0f3", None, "a_jpg"),  # a version by Roboflow
        ("train/film1_0003", r"(.+)_\d+", "film1"),
        ("train/film1_0003", r"film\d", "film1"),
        ("scene7/0003", r"scene\d", "scene7"),
        ("train/site_3.mp4_0001", r"(.+)_\d+", "site_3.mp4"),
        ("train/a", None, None),
    ],
)
def test_a_group_is_found_in_the_name_or_the_path(
    name: str, group: str | None, found: str | None
) -> None:
    assert group_in((Path(name).name, name), check_pattern(group)) == found


def test_every_image_of_both_splits_is_validated_once(tiny_voc: TinyVOC) -> None:
    tiny_voc.listing("test").write_text("x\n")
    validated = []
    for fold in range(3):
        data = replace(tiny_voc.config(), fold=fold, folds=3)
        train, val = (open_split(data, split) for split in ("train", "val"))
        check_overlap(train, val)
        assert sorted(train.ids + val.ids) == ALL
        assert f"fold {fold} of 3" in val.name
        assert "6 images in 6 groups, 4 to train on and 2 to validate" in val.notes[-1]
        validated += val.ids
    assert sorted(validated) == ALL
    assert open_split(data, "test").ids == ["x"]  # as it is
    together = replace(data, group=r"[tv](\d)")  # t0 and v0 are of one film
    train, val = ({name[1] for name in open_split(together, s).ids} for s in ("train", "val"))
    assert train.isdisjoint(val)


@pytest.mark.parametrize("layout", ["voc", "folder", "shards"])
def test_a_set_without_a_validation_split_is_divided_alone(tiny_voc: TinyVOC, layout: str) -> None:
    data = replace(tiny_voc.config(), fold=1, folds=2)
    tiny_voc.listing("val").unlink()
    if layout == "shards":
        files, folder = open_split(tiny_voc.config(), "train"), tiny_voc.root / "shards"
        write_shards(files, folder, "train", Console(quiet=True))
        data = replace(data, layout=layout, root=str(folder))
    if layout == "folder":
        data = replace(data, layout=layout, root=str(tiny_voc.root / "new"))
        for part, find in (("images", tiny_voc.image), ("annotations", tiny_voc.mask)):
            folder = tiny_voc.root / "new" / part / "train"
            folder.mkdir(parents=True)
            for name in tiny_voc.ids["train"]:
                (folder / find(name).name).write_bytes(find(name).read_bytes())
    train, val = (open_split(data, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (2, 2)
    assert "of train: of 4 images" in train.notes[-1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fold": 5}, "data.fold=5: must be 0 to 4"),
        ({"folds": 3}, "data.folds=3 needs data.fold"),
        ({"group": "x"}, "data.group=x needs data.fold"),
        ({"fold": 0, "group": "("}, "not a regular expression"),
        ({"fold": 0, "group": "film"}, "is in no image's name, such as t0"),
        ({"fold": 0, "val_split": "train"}, "need two names"),
        ({"fold": 0, "folds": 7}, "6 images are of 6 groups"),
        ({"fold": 0, "folds": 3, "group": "[tv]"}, "6 images are of 2 groups"),
    ],
)
def test_mistakes_are_named(tiny_voc: TinyVOC, settings: dict[str, Any], words: str) -> None:
    with pytest.raises((ConfigError, DataError)) as error:
        open_split(replace(tiny_voc.config(), **settings), "train")
    assert words in str(error.value)


@pytest.mark.usefixtures("no_pictures")
def test_runs_know_their_own_fold(
    tiny_voc: TinyVOC,
    command: Callable[..., Any],
    error_line: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They are evaluated and resumed on it, compared, and images that they have seen are named."""
    monkeypatch.chdir(tiny_voc.root)
    data = [*tiny_voc.overrides(), "data.folds=3"]
    arguments = [*data, *QUICK, "trainer.max_steps=1"]
    sweep = ["data.fold=0,1,2", "-m", "hydra.sweep.dir=sweep"]  # a flag anywhere
    command("train", *arguments, *sweep)
    assert "fold 2 of 3 of train and val: of 6 images" in capsys.readouterr().out
    ids = []
    for fold in range(3):
        run = Path("sweep", str(fold))
        assert json.loads((run / "run.json").read_text())["config"]["data"]["fold"] == fold
        command("evaluate", f"checkpoint={run}", f"hydra.run.dir=again{fold}")
        own, again = (path / "metrics.json" for path in (run, Path(f"again{fold}")))
        assert own.read_bytes() == again.read_bytes()
        ids += np.load(run / "per_image.npz")["ids"].tolist()
    assert sorted(ids) == ALL
    assert "data.fold" in error_line("train", "resume=sweep/0", "data.fold=1")
    assert "must be 0 to 2" in error_line("train", *arguments, "data.fold=3")
    command("compare", "sweep=sweep", "hydra.run.dir=compare")
    content = json.loads(Path("compare/compare.json").read_text())
    assert (content["images"], content["data"]) == (6, "tiny (folds 0, 1, 2)")
    (group,) = content["groups"]
    assert group["folds"] == [0, 1, 2]

    copy = shutil.copytree(tiny_voc.root, tiny_voc.root.with_name("copy"))
    moved = ["checkpoint=sweep/1", f"data.root={copy}"]
    assert "add data.fold=null" in error_line("evaluate", *moved)
    assert "add data.fold=null" in error_line("evaluate", moved[0], "data.folder=other")
    command("evaluate", *moved, "data.fold=null", "hydra.run.dir=whole")
    assert json.loads(Path("whole/metrics.json").read_text())["protocol"]["images"] == 2
    command("evaluate", *moved, "data.fold=1", "hydra.run.dir=moved")
    assert Path("moved/metrics.json").read_bytes() == Path("sweep/1/metrics.json").read_bytes()

    other, first = [*data, "data.fold=1"], "checkpoint=sweep/0"
    for chosen, warned in (([*data, "data.fold=0"], False), (other, True), (data[:-1], True)):
        capsys.readouterr()
        command("evaluate", first, *chosen, "overwrite=true", "hydra.run.dir=again")
        assert ("the checkpoint was trained on" in capsys.readouterr().out) == warned
    command("train", *arguments, "data.fold=1", "model.init_from=sweep/0", "hydra.run.dir=new")
    assert "model.init_from: the checkpoint was trained on 2 of the 2" in capsys.readouterr().out
    line = error_line("export", first, "precision=int8", "output=a.onnx", *other)
    assert "data.fold=0 data.folds=3" in line
    tiny_voc.listing("test").write_text("v0\nv1\n")  # which is not divided
    for fold in range(2):
        run = f"checkpoint=sweep/{fold}"
        command("evaluate", run, "data.split=test", f"hydra.run.dir=test{fold}")
    command("compare", "runs=[test0,test1]", "hydra.run.dir=tested")
    tested = json.loads(Path("tested/compare.json").read_text())
    assert (tested["data"], tested["split"]) == ("tiny", "test")
    assert [group["folds"] for group in tested["groups"]] == [[0, 1]]
