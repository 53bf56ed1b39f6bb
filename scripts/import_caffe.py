"""Imports Caffe weights: `scripts/import_caffe.py caffemodel=FILE model=fcn8s output=FILE`."""

from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.config_store import ConfigStore

from fcn.app import run
from fcn.checks.scripts import check_import
from fcn.config import MEAN_BGR, VOID, ConfigError, ImportCaffeConfig

if TYPE_CHECKING:
    from rich.table import Table

    from fcn.models.surgery import Report


def main(cfg: ImportCaffeConfig) -> None:
    check_import(cfg)
    assert cfg.caffemodel is not None
    assert cfg.output is not None

    from rich.console import Console

    from fcn.inference import checkpoint
    from fcn.models.caffe_nets import import_fcn, import_vgg
    from fcn.models.caffemodel import read_caffemodel

    console, net, output = Console(markup=False), cfg.model.name, Path(cfg.output)
    blobs = read_caffemodel(cfg.caffemodel)
    caffemodel = Path(cfg.caffemodel)
    source = {"caffemodel": caffemodel.name, "sha256": checkpoint.sha256(caffemodel), "net": net}
    output.parent.mkdir(parents=True, exist_ok=True)
    if net == "vgg16":
        weights, report = import_vgg(blobs, mean_bgr=cfg.mean_bgr, name=cfg.caffemodel)
        checkpoint.write_weights(output, weights, {"source": source})
        use = f"train with backbone=vgg16 backbone.weights={output}"
    else:
        model, report = import_fcn(blobs, net, mean_bgr=cfg.mean_bgr, name=cfg.caffemodel)
        classes = class_names(cfg, model.arguments["num_classes"])
        about = {"classes": classes, "ignore_index": VOID, "source": source}
        checkpoint.write_safetensors(output, model, about)
        use = f"{len(classes)} classes, upsampling {model.arguments['upsampling']}"
        if len(classes) == 40 and cfg.mean_bgr == list(MEAN_BGR):
            use += (
                "; of the authors' nets with 40, NYUD's color net wants "
                "mean_bgr=[116.190,97.203,92.318], and its HHA net takes no photographs"
            )
    console.print(table(report))
    console.print(f"{net} in {output}: {use}", highlight=False, soft_wrap=True)


def class_names(cfg: ImportCaffeConfig, count: int) -> list[str]:
    from fcn.data.voc import CLASSES

    if not cfg.classes:
        return CLASSES if count == len(CLASSES) else [f"class {index}" for index in range(count)]
    if len(cfg.classes) != count:
        raise ConfigError(f"classes names {len(cfg.classes)}, but the net scores {count} classes")
    return cfg.classes


def table(report: "Report") -> "Table":
    """Each fate, how many tensors met it, and which."""
    from rich.table import Table

    result = Table("fate", "tensors", "which", title=f"imported from {report.source}", box=None)
    for fate in dict.fromkeys(entry.fate for entry in report.fates):
        entries = [entry for entry in report.fates if entry.fate == fate]
        shown = [e.name + (f": {e.note}" if e.note else "") for e in entries[:4]]
        more = [f"... {entries[-1].name}"] if len(entries) > 4 else []
        result.add_row(fate, str(len(entries)), "\n".join(shown + more))
    return result


if __name__ == "__main__":
    ConfigStore.instance().store(group="model", name="vgg16", node={"name": "vgg16"})
    run("import_caffe", main)
