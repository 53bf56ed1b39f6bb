"""The READMEs: every link leads somewhere, and every command has settings that exist."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from fcn.cli import BORROWED_GROUPS, prepare_arguments
from fcn.config import CONFIGS, REPOSITORY, SCHEMAS, check, check_used_data
from fcn.hydra_versions import VERSION_BASE

READMES = [
    REPOSITORY / folder / "README.md"
    for folder in (
        ".",
        "configs",
        "configs/experiment",
        "data",
        "fcn/explain",
        "fcn/inference",
        "scripts",
    )
]
COMMAND = re.compile(r"python (?:-m \S+ (?:--\S+ )*)?scripts/(\w+)\.py([^`\n]*)")


def names(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("readme", READMES, ids=names)
def test_every_link_leads_somewhere(readme: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", readme.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = readme.parent / file if file else readme
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}


@cache
def check_command(name: str, *given: str) -> None:
    """Check the settings of a command, which several READMEs may show."""
    ConfigStore.instance().store(name=f"{name}_schema", node=SCHEMAS[name])
    with initialize_config_dir(str(CONFIGS), **VERSION_BASE):
        values = OmegaConf.to_container(
            compose(name, prepare_arguments([*given], name)), resolve=True
        )
    assert isinstance(values, dict)
    values |= {key: "FILE" for key, value in values.items() if value == "???"}  # "..."
    check_used_data(check(values, SCHEMAS[name]), [*given], name)


@pytest.mark.parametrize("readme", READMES, ids=names)
def test_every_command_has_settings_that_exist_and_fit(readme: Path) -> None:
    for name, rest in COMMAND.findall(readme.read_text(encoding="utf-8")):
        if "--config" in rest or "hparams_search" in rest:  # files of the reader's, of an extra
            continue
        words = shlex.split(rest.partition(" #")[0].partition("   ")[0].replace("|", "\\|"))
        given = [word for word in words if re.match(r"[~+\w./@]+=", word)]
        given = [word for word in given if not word.startswith(("hydra.", "hydra/"))]
        given = [word for word in given if not word.endswith(("NAME", "..."))]  # any
        if name == "prepare_data":  # which takes these of train's
            given = [word for word in given if not word.startswith(BORROWED_GROUPS)]
        check_command(name, *(re.sub(r"=([^\[{]*?),.*", r"=\1", word) for word in given))  # first
