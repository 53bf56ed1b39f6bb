"""The Hugging Face Hub: model cards and upload."""

from pathlib import Path
from typing import Any

from fcn.errors import ConfigError, UserError
from fcn.inference.metrics import METRICS
from fcn.inference.web_demo import SPACE
from fcn.output import percent

FILES = {
    "model": ("config.json", "model.safetensors", "README.md"),
    "space": (*SPACE, "model.onnx", "model.json"),
}
CARD = """\
---
library_name: fcn-segmentation
pipeline_tag: image-segmentation
{licence}---
# FCN-{stride}s on {data}

Backbone {backbone}, upsampling {upsampling}, padding {padding}. \
Long, Shelhamer & Darrell, CVPR 2015.

```python
import fcn
model = fcn.load("hf://USER/NAME")  # image (B, {channels}, H, W), uint8 or in [0, 1]
predict = fcn.Predictor("hf://USER/NAME")  # a file, or its pixels -> mask (H, W)
```

Classes: {classes}.
"""
MEASURED = """
Measured on {data} {split} ({images} images) at {size} size, {precision}:

| metric | % |
|---|---|
"""


def model_card(metadata: dict[str, Any], licence: str | None = None) -> str:
    """Return a model card: what the model is, its numbers with their protocol, how to load it.

    Args:
        metadata: of the checkpoint.
        licence: the Hub's word for the licence of the weights; None: the card names none.
    """
    card = CARD.format(
        **{"channels": metadata["model"].get("in_channels", 3)} | metadata["model"],
        licence=f"license: {licence}\n" if licence else "",
        data=metadata.get("data", {}).get("name", "unknown data"),
        classes=", ".join(metadata["classes"]),
    )
    if metrics := metadata.get("metrics"):
        card += MEASURED.format(**metrics["protocol"])
        rows = ((name.replace("_", " "), percent(metrics[name])) for name in METRICS)
        card += "".join(f"| {name} | {value} |\n" for name, value in rows)
    return card


def push(folder: Path, repository: str, kind: str = "model") -> str:
    """Upload what export writes to a folder, and nothing else there; return its address.

    Args:
        folder: with the `FILES` of its kind.
        repository: USER/NAME.
        kind: model or space.

    Raises:
        ConfigError: huggingface_hub is not installed.
        UserError: the Hub does not accept it.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise ConfigError('uploading needs: pip install "fcn-segmentation[hub]"') from None
    api, sdk = HfApi(), "gradio" if kind == "space" else None
    try:
        address = api.create_repo(repository, repo_type=kind, exist_ok=True, space_sdk=sdk)
        api.upload_folder(
            repo_id=repository, repo_type=kind, folder_path=folder, allow_patterns=list(FILES[kind])
        )
    except Exception as error:  # of the network, or of the Hub
        key = "push" if kind == "model" else "space"
        raise UserError(f"{key}={repository}: {' '.join(str(error).split())[:200]}") from error
    return str(address)
