"""The choices in configs/ against what they stand for, and the ranges of single settings."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from fcn.cli import SEVERAL_CHOICES, Command, describe_settings, prepare_arguments
from fcn.config import (
    CONFIGS,
    SCHEMAS,
    DataConfig,
    LossConfig,
    Schema,
    TrainConfig,
    check,
    check_used_data,
    flat_keys,
    setting,
    unknown_key,
)
from fcn.errors import ConfigError
from fcn.hydra_versions import VERSION_BASE
from fcn.models.upsampling import UPSAMPLINGS
from fcn.models.vgg import VARIANTS
from fcn.training.loss import LOSSES
from fcn.training.plan import check_combinations, learning_rate
from tests.conftest import Patch


def checked(cfg: Any) -> TrainConfig:
    return check(OmegaConf.to_container(cfg, resolve=True), TrainConfig)


def composed(*overrides: str) -> TrainConfig:
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    with initialize_config_dir(str(CONFIGS), **VERSION_BASE):
        return checked(compose("train", list(overrides)))


def choices(group: str) -> set[str]:
    return {path.stem for path in (CONFIGS / group).glob("*.yaml")}


def test_every_choice_is_a_file_and_every_file_a_choice() -> None:
    assert choices("upsampling") == set(UPSAMPLINGS)
    assert choices("backbone") == set(VARIANTS)
    assert choices("loss") == set(LOSSES)
    for group in ("model", "backbone", "upsampling", "data", "loss"):
        for choice in choices(group):
            assert getattr(composed(f"{group}={choice}"), group).name == choice
    assert composed("model=fcn8s", "model.stride=32").model.name == "fcn32s"


def test_an_augmentation_changes_the_transforms_alone() -> None:
    plain = composed("experiment=voc_vgg16").recipe
    assert plain.transforms == []
    for choice in choices("augmentation") - {"none"}:
        recipe = composed("experiment=voc_vgg16", f"augmentation={choice}").recipe
        assert len(recipe.transforms) > 1
        assert replace(recipe, transforms=[]) == plain


def test_the_readme_names_every_choice() -> None:
    text = (CONFIGS / "README.md").read_text(encoding="utf-8")
    for path in CONFIGS.glob("*/*.yaml"):
        assert f"`{path.stem.removesuffix('_bn')}`" in text, path


def test_every_setting_has_a_meaning() -> None:
    def check(schema: Any, key: str) -> None:
        for name, field in schema.__dataclass_fields__.items():
            if hasattr(field.type, "__dataclass_fields__"):
                check(field.type, f"{key}.{name}")
            else:
                assert field.metadata["description"], f"{key}.{name}"

    for name, schema in SCHEMAS.items():
        check(schema, name)


@pytest.mark.parametrize(
    ("name", "stride", "lr", "steps", "scales"),
    [
        ("voc_fcn32s", 32, 1e-10, 100_000, {}),
        ("voc_fcn16s", 16, 1e-12, 100_000, {}),
        ("voc_fcn8s", 8, 1e-14, 100_000, {}),
        ("voc_fcn8s_atonce", 8, 1e-10, 300_000, {"pool4": 0.01, "pool3": 0.0001}),
    ],
)
def test_the_authors_experiments_are_the_authors(
    name: str, stride: int, lr: float, steps: int, scales: dict[str, float]
) -> None:
    cfg = composed(f"experiment={name}", "model.init_from=coarser.ckpt")
    check_combinations(cfg)
    assert cfg.model.stride == stride
    assert cfg.model.skip_scales == scales
    assert (cfg.model.padding, cfg.model.dropout) == (100, 0.5)
    assert (cfg.backbone.name, cfg.backbone.weights) == ("vgg16", "imagenet")
    assert cfg.upsampling.name == "fixed"
    data = cfg.data
    assert (data.name, data.train_split, data.val_split) == ("sbd", "train", "seg11valid")
    recipe = cfg.recipe
    assert learning_rate(recipe, cfg.model.name) == lr
    assert learning_rate(replace(recipe, lr=3e-11), cfg.model.name) == 3e-11
    assert (recipe.optimizer, recipe.momentum) == ("sgd", 0.99)
    assert (recipe.weight_decay, recipe.bias_lr_factor) == (5e-4, 2)
    assert (recipe.schedule, recipe.loss_reduction, recipe.batch_size) == ("constant", "sum", 1)
    assert (recipe.crop, recipe.flip, recipe.jitter, recipe.scale) == (None, False, 0, [1, 1])
    assert cfg.trainer["max_steps"] == steps
    assert cfg.trainer["precision"] == "32-true"
    assert cfg.trainer.get("accumulate_grad_batches", 1) == 1


def test_the_accumulated_recipe_is_the_2015_papers() -> None:
    cfg = composed("recipe=accumulated", "backbone=vgg16")
    check_combinations(cfg)
    assert (cfg.recipe.batch_size, cfg.trainer["accumulate_grad_batches"]) == (1, 20)
    assert (cfg.recipe.lr, cfg.recipe.momentum) == (1e-4, 0.9)
    assert (cfg.recipe.bias_lr_factor, cfg.recipe.loss_reduction) == (2, "mean")
    assert cfg.trainer["val_check_interval"] == 20 * 500


def test_a_choice_of_trainer_beats_the_recipe_and_a_single_setting_beats_both(
    tmp_path: Path,
) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "mine.yaml").write_text("max_steps: 7\nprecision: 32-true\n")
    given = [f"hydra.searchpath=[file://{tmp_path}]", "recipe=modern", "trainer=mine"]
    for order in (given, given[::-1]):
        trainer = composed(*order).trainer
        assert (trainer["max_steps"], trainer["precision"]) == (7, "32-true")
        assert trainer["val_check_interval"] == 1000  # of the recipe
    assert composed(*given, "trainer.max_steps=9").trainer["max_steps"] == 9


@pytest.mark.parametrize(
    "overrides",
    [
        ["recipe=heavy", "model=fcn8s"],  # straight from VGG
        ["recipe=sample", "recipe.loss_reduction=sum"],  # lr of a mean loss
        ["recipe=heavy", "model=fcn32s", "recipe.loss_reduction=mean"],  # lr of a summed loss
        ["recipe=heavy", "model=fcn32s", "+trainer.accumulate_grad_batches=2"],
        ["recipe=heavy", "model=fcn32s", "trainer.precision=16-mixed"],
        ["recipe=heavy", "model=fcn32s", "recipe.scale=[0.5,1]"],  # whole images
        ["recipe.scale=[2,1]"],
        ["backbone.freeze=conv3"],  # of random weights
    ],
)
def test_settings_that_cannot_learn_are_errors(overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"recipe|random weights"):
        check_combinations(composed(*overrides))


# Values that each of these settings must not take.
INVALID: dict[str, list[Any]] = {
    "seed": [-1, 2**32],
    "data.ignore_index": [-1, 256],
    "data.num_workers": [-1],
    "data.checksum": ["md5:1"],
    "data.root": [""],
    "model.dropout": [-0.1, 1.0, float("nan")],
    "backbone.width": [0],
    "recipe.lr": [0.0, -1.0, float("inf")],
    "recipe.schedule": ["step"],
    "recipe.loss_reduction": ["none"],
    "recipe.momentum": [-0.1, 1.0],
    "recipe.ema_decay": [-0.1, 1.0],
    "recipe.weight_decay": [-0.1],
    "recipe.jitter": [-0.1, 1.1],
    "recipe.warmup_steps": [-1],
    "recipe.batch_size": [0],
    "recipe.crop": [0],
    "recipe.scale": [[0.0, 1.0], [1.0], []],
}


def test_a_value_out_of_range_is_named_with_its_key() -> None:
    cfg = OmegaConf.structured(composed())
    assert checked(cfg)
    for key, values in INVALID.items():
        for value in values:
            changed = cfg.copy()
            OmegaConf.update(changed, key, value)
            with pytest.raises(ConfigError, match=key):
                checked(changed)


# For each setting that needs others, a value of its own.
VALUES = {
    "loss.arguments": "{power: 2}", "loss.label_smoothing": 0.1, "loss.dice_weight": 2,
    "loss.gamma": 3, "loss.hardest": 0.5, "size": "[8,8]", "input": "uint8", "argmax": "true",
    "precision": "float16", "benchmark precision": "32-true", "calibration": 3, "keep": "[fc6]",
    "push": "me/it", "space": "me/it",
    "licence": "mit", "assets": "dist", "example": "a.png", "to": "new", "images": 5,
    "masks": "labels", "labels": "{7: road}", "merge": "{a: b}", "val_share": 0.5, "group": "a",
    "nearest": "true", "line_width": 3, "resize": "true", "link": "true", "checkpoint": "run",
    "fcn32s": "run", "fcn16s": "run", "image": "a", "steps": 9, "seed": 1, "quick": "true",
    "num_classes": 3, "rounds": 5, "device": "cpu", "data.url": "a.zip",
    "data.checksum": f"md5:{32 * '0'}", "data.download": "true", "data.limit": 2,
    "data.split": "val", "classes": "[a,b]",
}  # fmt: skip
# What meets a condition in all commands, and what does not.
MET = {"convert": "a.zip", "checkpoint": "run", "download": "true", "url": "a.zip", "_target_": "a"}
UNMET = {"format": "safetensors", "explain": "matrix", "precision": "float32", "quick": "true"}
UNMET |= {"network": "vgg16"}


@cache
def defaults_of(command: str) -> Any:
    """Return what a command's files say, with what is mandatory."""
    ConfigStore.instance().store(name=f"{command}_schema", node=SCHEMAS[command])
    needed = {"export": ["output=a", "checkpoint=run"], "evaluate": ["checkpoint=run"]}
    needed["import_caffe"] = ["caffemodel=a", "output=a.safetensors"]
    with initialize_config_dir(str(CONFIGS), **VERSION_BASE):
        cfg = compose(command, needed.get(command, []))
    OmegaConf.set_struct(cfg, False)
    return cfg


def settings_of(command: str, *given: str) -> Any:
    """Return a command's settings, checked as the command checks them."""
    cfg = OmegaConf.merge(defaults_of(command), OmegaConf.from_dotlist(list(given)))
    settings: Any = check(OmegaConf.to_container(cfg, resolve=True), SCHEMAS[command])
    check_used_data(settings, given, command)
    return settings


def overrides_of(needs: str, group: str, *, broken: int | None = None) -> list[str]:
    """Return a command line that meets the conditions of a setting, but for one of them."""
    given = []
    for index, condition in enumerate(needs.split()):
        key, _, values = condition.partition("=")
        value = values.split(",")[0] or MET[key]
        if index == broken:
            value = "" if not values else UNMET.get(key, "ohem" if "ohem" not in values else "dice")
            value = "run" if values == "null" else "folder" if key == "layout" else value
        name = f"{group}.{key}" if group else key
        given += [f"{name}={value}"] if value not in ("", "null", "false") else []
    return given


def conditional_settings() -> Iterator[tuple[str, str, str, str]]:
    """Yield (command, group, key, conditions) of every setting that does nothing without others."""
    for command, schema in SCHEMAS.items():
        for entry in fields(schema):
            if needs := entry.metadata.get("needs"):
                key = "data.name" if entry.name == "data" else entry.name
                yield command, "", key, needs
            if entry.name in ("data", "loss") and command in ("train", "evaluate"):
                for part in fields({"data": DataConfig, "loss": LossConfig}[entry.name]):
                    if needs := part.metadata.get("needs"):
                        yield command, entry.name, f"{entry.name}.{part.name}", needs


@pytest.mark.parametrize(("command", "group", "key", "needs"), list(conditional_settings()))
def test_a_setting_that_would_do_nothing_is_refused(
    command: str, group: str, key: str, needs: str
) -> None:
    value = VALUES.get(f"{command} {key}", VALUES.get(key, "mine"))
    wish = f"{key}={value}"
    also = ["data.download=true"] if key == "data.checksum" else []
    settings_of(command, wish, *also, *overrides_of(needs, group))
    for index in range(len(needs.split())):
        given = overrides_of(needs, group, broken=index)
        with pytest.raises(
            ConfigError, match=rf"^{re.escape(key)}=.* has no effect without .*, or leave it out$"
        ):
            settings_of(command, *also, *given, wish)


@pytest.mark.parametrize(
    "command",
    [name for name in SCHEMAS if any(entry.name == "data" for entry in fields(SCHEMAS[name]))],
)
def test_what_a_command_does_not_use_of_a_data_set_is_refused(command: str) -> None:
    entry = next(entry for entry in fields(SCHEMAS[command]) if entry.name == "data")
    need = overrides_of(entry.metadata["needs"], "")
    for name in entry.metadata["unused"]:
        wish = f"data.{name}={VALUES[f'data.{name}']}"
        with pytest.raises(ConfigError, match=rf"{wish}: {command} does not use it"):
            settings_of(command, *need, wish)
    settings_of(command, *need, "data.name=mine")


def test_a_loss_of_ones_own_takes_nothing_of_the_others() -> None:
    for wish in ("loss.gamma=3", "loss.label_smoothing=0.1"):
        with pytest.raises(ConfigError, match=r"without loss\._target_=null"):
            settings_of("train", wish, "loss._target_=own.Loss")


@pytest.mark.parametrize(
    ("command", "hint"), [("train", "did you mean data.num_workers?"), ("compare", "--help")]
)
def test_a_key_is_suggested_if_the_command_has_it(command: str, hint: str) -> None:
    assert hint in unknown_key("workers", list(flat_keys(OmegaConf.structured(SCHEMAS[command]))))


@pytest.mark.parametrize("group", sorted(path.name for path in CONFIGS.iterdir() if path.is_dir()))
def test_a_group_takes_one_choice_unless_it_merges_several(
    group: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Hydra takes a list for any group; the last choice would win without a word."""
    monkeypatch.chdir(tmp_path)
    first, *others = sorted(choices(group))
    listed = f"{group}=[{','.join([first, *others][:2])}]"
    if group in SEVERAL_CHOICES:
        assert listed in Command("train").arguments([listed])
        return
    with pytest.raises(ConfigError, match="takes one choice"):
        Command("train").arguments([listed])
    assert f"{group}={first},{first}" in Command("train").arguments(
        ["-m", f"{group}={first},{first}"]
    )
    with pytest.raises(ConfigError, match="with -m"):
        Command("train").arguments([f"{group}={first},{first}"])
    with pytest.raises(ConfigError, match="takes one choice"):  # prepare_data borrows two groups
        Command("prepare_data").arguments([listed])


@pytest.mark.parametrize("command", SCHEMAS)
def test_an_argument_that_is_no_setting_is_named(command: str) -> None:
    key = fields(SCHEMAS[command])[0].name
    for argument in ("photo.jpg", f"--{key}=a", f"--{key}", f"-{key}.name"):
        for before in ([], ["-m"], ["--help"]):
            with pytest.raises(ConfigError, match=re.escape(argument)):
                prepare_arguments([*before, argument], command)
    fine = ["--config-dir", "mine", "-m", "--cfg", "job", "--info", "-h", f"{key}=a", f"~{key}"]
    assert len(prepare_arguments(fine, command)) == len(fine)


def test_the_help_says_what_every_setting_means() -> None:
    """Equal meanings too; the arguments of Lightning's Trainer share theirs."""

    arguments = setting({"a": 1, "b": 2}, "any argument")

    @dataclass
    class Two(Schema):
        given: str = setting(MISSING, "a file")
        one: bool = setting(False, "their weight")
        two: float | None = setting(None, "their weight")
        three: int = setting(3, "their weight", needs="one")
        trainer: dict[str, Any] = arguments

    lines = describe_settings(OmegaConf.structured(Two), Two).splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [
        ["given=VALUE", "must be given: a file"], ["one=false", "their weight"],
        ["two=null", "their weight"], ["three=3", "their weight [with one=...]"],
        ["trainer.a=1", "any argument"], ["trainer.b=2"],
    ]  # fmt: skip
