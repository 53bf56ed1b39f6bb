"""The command that converts the FCN authors' published Caffe weights."""

from pathlib import Path

from rich.console import Console

from fcn import checkpoint
from fcn.config import ImportCaffeConfig
from fcn.data.layouts import VOC_CLASSES
from fcn.dataset_info import MEAN_BGR, VOID, class_problem
from fcn.errors import ConfigError
from fcn.models.caffe import import_fcn, import_vgg, read_caffemodel
from fcn.output import refuse_overwriting


def main(cfg: ImportCaffeConfig, folder: Path, console: Console) -> None:
    """Convert `cfg.caffemodel` to `cfg.output` and print what became of every blob."""
    net, caffemodel, output = cfg.network, Path(cfg.caffemodel), Path(cfg.output)
    refuse_overwriting([output], cfg.overwrite)
    blobs = read_caffemodel(cfg.caffemodel)
    source = {"caffemodel": caffemodel.name, "sha256": checkpoint.sha256(caffemodel), "net": net}
    output.parent.mkdir(parents=True, exist_ok=True)
    if net == "vgg16":
        weights, report = import_vgg(blobs, mean_bgr=cfg.mean_bgr, name=cfg.caffemodel)
        checkpoint.write_weights(output, weights, {"source": source})
        use = f"train with backbone=vgg16 backbone.weights={output}"
    else:
        model, report = import_fcn(blobs, net, mean_bgr=cfg.mean_bgr, name=cfg.caffemodel)
        classes = _class_names(cfg, model.arguments["num_classes"])
        metadata = {"classes": classes, "ignore_index": VOID, "source": source}
        checkpoint.write_safetensors(output, model, metadata)
        use = f"{len(classes)} classes, upsampling {model.arguments['upsampling']}"
        if len(classes) == 40 and cfg.mean_bgr == list(MEAN_BGR):
            use += "; NYUD's color network needs mean_bgr=[116.190,97.203,92.318]"
    console.print(checkpoint.surgery_table(report))
    console.print(f"{net} in {output}: {use}")


def _class_names(cfg: ImportCaffeConfig, count: int) -> list[str]:
    if not cfg.classes:
        known = count == len(VOC_CLASSES)
        return list(VOC_CLASSES) if known else [f"class {index}" for index in range(count)]
    if len(cfg.classes) != count:
        raise ConfigError(f"classes names {len(cfg.classes)}, but the network has {count} classes")
    if problem := class_problem(cfg.classes):
        raise ConfigError(f"classes: {problem}")
    return cfg.classes
