"""Runs ONNX files in a runtime of any version: run_onnx.py RUNTIME FOLDER.

The image of NAME.onnx is NAME.npy, and the scores go to NAME.RUNTIME.npy.
It runs in an environment with that runtime and NumPy alone, so pytest does not import it.
"""

import sys
from pathlib import Path

import numpy as np


def run_onnxruntime(path, image):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": image})[0]


def run_opencv(path, image):
    import cv2

    network = cv2.dnn.readNetFromONNX(str(path))
    network.setInput(image)
    return network.forward()


def run_openvino(path, image):
    import openvino

    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(str(path), "CPU", hint)({"image": image})[0]


runtime, folder = sys.argv[1], Path(sys.argv[2])
for path in sorted(folder.glob("*.onnx")):
    if runtime == "opencv" and path.stem.startswith("any"):
        continue  # it opens files of one size alone
    try:
        result = globals()[f"run_{runtime}"](path, np.load(path.with_suffix(".npy")))
    except Exception as error:
        print(f"{path.stem}: {error}", file=sys.stderr)
        continue
    np.save(path.with_suffix(f".{runtime}.npy"), result)
