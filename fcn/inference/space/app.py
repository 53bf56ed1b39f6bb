"""A demo of the network in model.onnx: a photograph goes in, what it shows comes out."""

import json
from pathlib import Path

import gradio as gr
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

LONGEST = 1280  # pixels of a side; larger pictures are shrunk

network = onnxruntime.InferenceSession(str(Path(__file__).with_name("model.onnx")))
about = json.loads(network.get_modelmeta().custom_metadata_map["about"])
classes = list(enumerate(about["classes"]))
colours = {name: "#{:02x}{:02x}{:02x}".format(*about["palette"][k]) for k, name in classes}


def segment(photo: Image.Image | None) -> tuple[Image.Image, list[tuple[np.ndarray, str]]]:
    """Return a picture, and for each class in it the name and where it is, bool (H, W)."""
    if photo is None:
        raise gr.Error("Choose a picture first.")
    photo = ImageOps.exif_transpose(photo).convert("RGB")
    photo.thumbnail((LONGEST, LONGEST))
    image = np.asarray(photo).transpose(2, 0, 1)[None]  # (1, 3, H, W)
    labels = network.run(None, {"image": image})[0][0]  # (H, W)
    objects = classes[1:] if about.get("background", True) else classes
    found = [(labels == k, name) for k, name in objects if (labels == k).any()]
    return photo, found


demo = gr.Interface(
    segment,
    gr.Image(type="pil", label="Picture"),
    gr.AnnotatedImage(color_map=colours, label="What the network sees"),
    title="What is in the picture?",
    description=f"This network knows: {', '.join(about['classes'])}.",
    flagging_mode="never",
    api_name="segment",
)

if __name__ == "__main__":
    demo.launch()
