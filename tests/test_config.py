"""The choices in configs/ against the facts they stand for and the code that takes them."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fcn import config
from fcn.app import CONFIGS
from fcn.checks.training import check, learning_rate
from fcn.config import ConfigError, TrainConfig
from fcn.models.upsampling import UPSAMPLINGS
from fcn.models.vgg import VARIANTS


def composed(*overrides: str) -> TrainConfig:
    config.register()
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg: Any = OmegaConf.to_object(compose("train", list(overrides)))
    assert isinstance(cfg, TrainConfig)
    return cfg


def choices(group: str) -> set[str]:
    return {path.stem for path in Path(CONFIGS, group).glob("*.yaml")}


def test_every_choice_is_a_file_and_every_file_a_choice() -> None:
    assert choices("upsampling") == set(UPSAMPLINGS)
    assert choices("backbone") == set(VARIANTS)
    for group in ("model", "backbone", "upsampling", "data", "recipe"):
        for choice in choices(group):
            assert getattr(composed(f"{group}={choice}"), group).name == choice


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
    check(cfg)
    assert cfg.model.stride == stride
    assert cfg.model.skip_scales == scales
    assert cfg.model.padding == 100
    assert cfg.model.dropout == 0.5
    assert cfg.backbone.name == "vgg16"
    assert cfg.backbone.weights == "imagenet"
    assert cfg.upsampling.name == "fixed"
    assert (cfg.data.name, cfg.data.train_split, cfg.data.val_split) == (
        "sbd",
        "train",
        "seg11valid",
    )
    recipe = cfg.recipe
    assert recipe.name == "heavy"
    assert learning_rate(recipe, cfg.model) == lr
    assert recipe.optimizer == "sgd"
    assert recipe.momentum == 0.99
    assert recipe.weight_decay == 5e-4
    assert recipe.bias_lr_factor == 2
    assert recipe.schedule == "constant"
    assert recipe.loss_reduction == "sum"
    assert (recipe.batch_size, recipe.accumulate) == (1, 1)
    assert (recipe.crop, recipe.flip, recipe.jitter) == (None, False, 0)
    assert recipe.scale == [1, 1]
    assert cfg.trainer.max_steps == steps
    assert cfg.trainer.precision == "32-true"


def test_the_accumulated_recipe_is_the_2015_papers() -> None:
    cfg = composed("recipe=accumulated", "backbone=vgg16")
    check(cfg)
    assert (cfg.recipe.batch_size, cfg.trainer.accumulate_grad_batches) == (1, 20)
    assert cfg.recipe.lr == 1e-4
    assert cfg.recipe.momentum == 0.9
    assert cfg.recipe.bias_lr_factor == 2
    assert cfg.recipe.loss_reduction == "mean"


def test_finer_strides_straight_from_vgg_are_refused_under_heavy() -> None:
    for name in ("voc_fcn16s", "voc_fcn8s"):
        with pytest.raises(ConfigError, match=r"give model\.init_from"):
            check(composed(f"experiment={name}"))
    check(composed("experiment=voc_fcn8s_atonce"))
    check(composed("experiment=voc_fcn32s"))


def test_an_explicit_rate_wins() -> None:
    cfg = composed("recipe=heavy", "model=fcn32s", "recipe.lr=3e-11")
    assert learning_rate(cfg.recipe, cfg.model) == 3e-11
