"""The command `explain`: runs the topics as notebooks; writes them, and the explorer, as pages.

A topic is a Python file in percent format: `# %% [markdown]` begins prose, `# %%` begins code.
Every claim is an assert in it, so a page exists only if all of them hold.
"""

import ast
import asyncio
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from fcn.config import NETWORK_TOPICS, ExplainConfig
from fcn.config import TOPICS as CHOICES
from fcn.errors import ConfigError, UserError
from fcn.explain import demo
from fcn.explain.pages import PAGES, section, write_pages
from fcn.output import refuse_overwriting, write_json

TOPICS = CHOICES[1:]  # without "all", in the order of the page
ABOUT_NETWORK = NETWORK_TOPICS.removeprefix("explain=all,").split(",")
FILES = Path(__file__).with_name("topics")
Notebook = Any  # of nbformat


class ClaimError(UserError, AssertionError):
    """A claim does not hold, or other code of a topic fails, so no page is written."""


def main(cfg: ExplainConfig, folder: Path, console: Console) -> None:
    """Write the pages to folder/pages, which any static host can serve as it is."""
    pages = folder / "pages"
    chosen = TOPICS if cfg.explain == "all" else [cfg.explain]
    written = [*PAGES, *(f"{key}.ipynb" for key in chosen if cfg.notebooks)]
    refuse_overwriting([pages / name for name in written], cfg.overwrite, "hydra.run.dir")
    about_network = [key for key in chosen if key in ABOUT_NETWORK]
    others = [key for key in chosen if key not in ABOUT_NETWORK]
    notebooks = {key: read(key) for key in chosen}
    subject = None
    with ThreadPoolExecutor(1) as pool:
        arithmetic = pool.submit(execute, {key: notebooks[key] for key in others})
        if about_network:  # meanwhile
            cfg = demo.with_networks(cfg, folder, console)
            subject = demo.subject(cfg, console)  # its errors come before all else
            with TemporaryDirectory() as scratch:
                settings = Path(scratch) / "settings.json"
                write_json(settings, asdict(cfg))
                own = {key: notebooks[key] for key in about_network}
                execute(own, {demo.SETTINGS: str(settings)})
        arithmetic.result()
    sections = [section(key, TOPICS.index(key) + 1, notebooks[key]) for key in chosen]
    for topic in sections:
        console.print(f"{topic.number}. {topic.title}")
    pages.mkdir(exist_ok=True)
    if cfg.notebooks:
        import nbformat

        for key, notebook in notebooks.items():
            nbformat.write(notebook, pages / f"{key}.ipynb")
    page = write_pages(sections, pages, subject)
    console.print(f"{sum(map(claims, notebooks.values()))} claims checked: {page}")


def read(key: str) -> Notebook:
    """Return a topic as a notebook."""
    try:
        import jupytext
    except ImportError:
        raise ConfigError('explain needs: pip install "fcn-segmentation[explain]"') from None
    return jupytext.read(FILES / f"{key}.py")


def execute(notebooks: Mapping[str, Notebook], settings: Mapping[str, str] | None = None) -> None:
    """Run topics in one kernel, which forgets their names in between; they get their outputs.

    Args:
        notebooks: key -> what `read` returns; changed in place.
        settings: more of the environment; text of a user goes this way, never into code.

    Raises:
        ClaimError: an assert fails, or any other line.
    """
    if not notebooks:
        return
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    together = nbformat.v4.new_notebook()
    for key, notebook in notebooks.items():
        for cell in notebook.cells:
            cell.metadata["topic"] = key
        together.cells += [*notebook.cells, nbformat.v4.new_code_cell("%reset -f")]
    quiet = ["--IPKernelApp.log_level=ERROR"]
    client = NotebookClient(
        together, timeout=None, kernel_name="python3", coalesce_streams=True, extra_arguments=quiet
    )
    environment = {**os.environ, **(settings or {})}
    environment["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm's, which names a path
    try:
        # Its own loop, closed at the end: `client.execute` leaves one open in every thread.
        asyncio.run(client.async_execute(env=environment))
    except CellExecutionError as error:
        raise _claim_error(together, error) from None


def _claim_error(notebook: Notebook, error: Any) -> ClaimError:
    """Return one line that names the topic and the line of code that failed."""
    outputs = ((cell, output) for cell in notebook.cells for output in cell.get("outputs", []))
    failed = next(cell for cell, output in outputs if output.output_type == "error")
    traceback = re.sub(r"\x1b\[[\d;]*m", "", str(error))
    lines = re.findall(r"^-+> +\d+ (.*)$", traceback, re.MULTILINE)
    where = f"explain={failed.metadata['topic']}: "
    if error.ename == "AssertionError" and lines:
        return ClaimError(f"{where}not true: {lines[0].strip()}")
    return ClaimError(f"{where}{error.ename}: {' '.join(error.evalue.split())}")


def claims(notebook: Notebook) -> int:
    """Return the number of asserts in a topic."""
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return sum(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(code)))
