"""Asks a Gradio Space what a picture shows: call_space.py ADDRESS PICTURE writes PICTURE.npz.

It runs in the Space's own environment, so pytest does not import it.
"""

import sys
import time

import numpy as np
from gradio_client import Client, handle_file
from PIL import Image

address, picture = sys.argv[1:]
for attempt in range(120):
    try:
        client = Client(address, verbose=False)
        break
    except Exception:  # it has not started yet
        if attempt == 119:
            raise
        time.sleep(0.5)
found = client.predict(handle_file(picture), api_name="/segment")
masks = {entry["label"]: Image.open(entry["image"]) for entry in found["annotations"]}
np.savez(f"{picture}.npz", **{name: np.asarray(mask)[..., 3] > 0 for name, mask in masks.items()})
