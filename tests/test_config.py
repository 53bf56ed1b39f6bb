"""The choices in configs/ against what they stand for, and the ranges of single settings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from fcn.config import CONFIGS, SCHEMAS, TrainConfig, check, flat_keys, unknown_key
from fcn.errors import ConfigError
from fcn.hydra_versions import VERSION_BASE
from fcn.models.upsampling import UPSAMPLINGS
from fcn.models.vgg import VARIANTS
from fcn.training.plan import check_combinations, learning_rate


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
    for group in ("model", "backbone", "upsampling", "data", "loss"):
        for choice in choices(group):
            assert getattr(composed(f"{group}={choice}"), group).name == choice
    assert composed("model=fcn8s", "model.stride=32").model.name == "fcn32s"


def test_an_augmentation_adds_transforms_to_any_recipe() -> None:
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


@pytest.mark.parametrize(
    ("command", "hint"), [("train", "did you mean data.num_workers?"), ("compare", "--help")]
)
def test_a_key_is_suggested_if_the_command_has_it(command: str, hint: str) -> None:
    assert hint in unknown_key("workers", list(flat_keys(OmegaConf.structured(SCHEMAS[command]))))
