"""The authors' networks and Caffe's files, written by hand, and OpenCV, which runs them."""

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch

from fcn.dataset_info import MEAN_BGR
from fcn.models.fcn import FCN

Layers = dict[str, tuple[str, list[np.ndarray]]]  # name -> type, blobs


@dataclass
class CaffeNetwork:
    """A prototxt, and the blobs of a caffemodel that goes with it."""

    rng: np.random.Generator
    prototxt: str = (
        'layer { name: "input" type: "Input" top: "data" '
        "input_param { shape { dim: 1 dim: 3 dim: 64 dim: 64 } } }\n"
    )
    layers: Layers = field(default_factory=dict)

    def add(
        self, name: str, kind: str, bottoms: list[str], settings: str = "", top: str = ""
    ) -> str:
        bottom = " ".join(f'bottom: "{b}"' for b in bottoms)
        self.prototxt += (
            f'layer {{ name: "{name}" type: "{kind}" {bottom} top: "{top or name}" {settings} }}\n'
        )
        return top or name

    def convolution(
        self, name: str, bottom: str, channels: tuple[int, int], kernel: int, pad: int, gain: float
    ) -> str:
        inputs, outputs = channels
        deviation = gain / np.sqrt(inputs * kernel**2)
        weight = self.rng.standard_normal((outputs, inputs, kernel, kernel), np.float32)
        weight *= np.float32(deviation)
        self.layers[name] = ("Convolution", [weight, self.rng.normal(0, 1, outputs)])
        settings = f"num_output: {outputs} kernel_size: {kernel} pad: {pad}"
        return self.add(name, "Convolution", [bottom], f"convolution_param {{ {settings} }}")

    def upsampling(self, name: str, bottom: str, classes: int, factor: int, bilinear: bool) -> None:
        weight = np.zeros((classes, classes, 2 * factor, 2 * factor))
        tent = 1 - np.abs(np.arange(2 * factor) - factor + 0.5) / factor
        weight[range(classes), range(classes)] = np.outer(tent, tent)
        if not bilinear:
            weight += self.rng.normal(0, 0.02, weight.shape)
        self.layers[name] = ("Deconvolution", [weight])
        settings = f"num_output: {classes} kernel_size: {2 * factor} stride: {factor} "
        self.add(
            name, "Deconvolution", [bottom], f"convolution_param {{ {settings} bias_term: false }}"
        )

    def crop(self, name: str, bottom: str, like: str, offset: int) -> str:
        return self.add(name, "Crop", [bottom, like], f"crop_param {{ axis: 2 offset: {offset} }}")

    def vgg16(self, width: int, pad: int) -> int:
        top, inputs = "data", 3
        for stage, (count, outputs) in enumerate(
            ((2, width), (2, 2 * width), (3, 4 * width), (3, 8 * width), (3, 8 * width)), start=1
        ):
            for index in range(1, count + 1):
                name = f"conv{stage}_{index}"
                around = pad if name == "conv1_1" else 1
                self.convolution(name, top, (inputs, outputs), 3, around, np.sqrt(2))
                top = self.add(f"relu{stage}_{index}", "ReLU", [name], top=name)
                inputs = outputs
            settings = "pooling_param { pool: MAX kernel_size: 2 stride: 2 }"
            top = self.add(f"pool{stage}", "Pooling", [top], settings)
        return inputs


def authors_network(
    model: str, bilinear: bool = True, width: int = 4, head: int = 48, classes: int = 21
) -> CaffeNetwork:
    """Return one of voc-fcn*/deploy.prototxt, narrower; every stream matters to the scores."""
    net = CaffeNetwork(np.random.default_rng(len(model) + bilinear + classes))
    channels = net.vgg16(width, pad=100)
    net.convolution("fc6", "pool5", (channels, head), 7, 0, np.sqrt(2))
    net.add("relu6", "ReLU", ["fc6"], top="fc6")
    net.convolution("fc7", "fc6", (head, head), 1, 0, np.sqrt(2))
    net.add("relu7", "ReLU", ["fc7"], top="fc7")
    top = net.convolution("score_fr", "fc7", (head, classes), 1, 0, 1)
    if model == "fcn32s":
        net.upsampling("upscore", top, classes, 32, bilinear)
        net.crop("score", "upscore", "data", 19)
        return net
    pools = [("pool4", "upscore2", 0.01, 5, 8 * width)]
    if model != "fcn16s":
        pools.append(("pool3", "upscore_pool4", 0.0001, 9, 4 * width))
    for pool, upscore, scale, offset, inputs in pools:
        net.upsampling(upscore, top, classes, 2, bilinear)
        skip = pool
        if model == "fcn8s_atonce":
            net.layers[f"scale_{pool}"] = ("Scale", [np.full(inputs, scale)])
            skip = net.add(f"scale_{pool}", "Scale", [pool])
        gain = 1 / scale if model == "fcn8s_atonce" else 1
        net.convolution(f"score_{pool}", skip, (inputs, classes), 1, 0, gain)
        cropped = net.crop(f"score_{pool}c", f"score_{pool}", upscore, offset)
        top = net.add(f"fuse_{pool}", "Eltwise", [upscore, cropped])
    name, factor, offset = ("upscore16", 16, 27) if model == "fcn16s" else ("upscore8", 8, 31)
    net.upsampling(name, top, classes, factor, bilinear)
    net.crop("score", name, "data", offset)
    return net


def vgg16(width: int = 2, head: int = 6) -> CaffeNetwork:
    net = CaffeNetwork(np.random.default_rng(0))
    channels = net.vgg16(width, pad=1)
    for name, bottom, inputs, outputs in (
        ("fc6", "pool5", channels * 49, head),
        ("fc7", "fc6", head, head),
        ("fc8", "fc7", head, 1000),
    ):
        weight = net.rng.normal(0, np.sqrt(2 / inputs), (outputs, inputs))
        net.layers[name] = ("InnerProduct", [weight, net.rng.normal(0, 1, outputs)])
        settings = f"inner_product_param {{ num_output: {outputs} }}"
        net.add(name, "InnerProduct", [bottom], settings)
        if name != "fc8":
            net.add(f"relu{name[-1]}", "ReLU", [name], top=name)
    return net


# What a .caffemodel is made of, in protobuf's wire format.


def varint(value: int) -> bytes:
    rest = value >> 7
    return bytes([value & 127 | 128]) + varint(rest) if rest else bytes([value])


def message(number: int, content: bytes | str | int) -> bytes:
    """Return a protobuf field: an integer, or a length and its bytes."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    raw = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(raw)) + raw


def floats(array: np.ndarray) -> bytes:
    return array.astype("<f4").tobytes()


def caffemodel(layers: Layers) -> bytes:
    result = message(1, "net") + message(100, message(1, "data") + message(2, "Input"))
    for name, (kind, blobs) in layers.items():
        content = message(1, name) + message(2, kind) + message(3, "bottom")
        for array in blobs:
            shape = message(1, b"".join(varint(size) for size in array.shape))
            content += message(7, message(5, floats(array)) + message(7, shape))
        result += message(100, content)
    return result


def v1_caffemodel(layers: Layers) -> bytes:
    """Return a file as Caffe wrote it before 2015: other numbers, and four sizes for each blob."""
    kinds = {"Convolution": 4, "InnerProduct": 14}
    result = message(1, "net")
    for name, (kind, blobs) in layers.items():
        content = message(2, "bottom") + message(3, name) + message(4, name)
        content += message(5, kinds[kind])
        for array in blobs:
            sizes = (1,) * (4 - array.ndim) + array.shape
            shape = b"".join(message(number, size) for number, size in enumerate(sizes, 1))
            content += message(6, shape + message(5, floats(array)))
        result += message(2, content)
    return result


def as_read(layers: Layers) -> dict[str, list[torch.Tensor]]:
    """Return layers as `read_caffemodel` would."""
    return {
        name: [torch.from_numpy(np.asarray(blob, np.float32)) for blob in blobs]
        for name, (_, blobs) in layers.items()
    }


def picture(height: int, width: int) -> np.ndarray:
    """Return RGB bytes: coarse patches and noise."""
    rng = np.random.default_rng(height * width)
    coarse = rng.integers(0, 200, (-(-height // 16), -(-width // 16), 3))
    patches = coarse.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    return (patches + rng.integers(0, 56, patches.shape)).astype(np.uint8)


def run_opencv(
    prototxt: str, path: Path, images: list[np.ndarray], output: str = "score"
) -> list[np.ndarray]:
    """Return what OpenCV computes from RGB images with a prototxt and a caffemodel."""
    text = path.with_suffix(".prototxt")
    text.write_text(prototxt)
    net = cv2.dnn.readNetFromCaffe(str(text), str(path))
    net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
    net.setPreferableTarget(cv2.dnn.DNN_TARGET_CPU)
    net.enableWinograd(False)
    results = []
    for rgb in images:
        bgr = rgb[..., ::-1].astype(np.float32) - np.array(MEAN_BGR, np.float32)
        net.setInput(np.ascontiguousarray(bgr.transpose(2, 0, 1)[None]))
        results.append(net.forward(output)[0].copy())
    return results


@torch.inference_mode()
def run_ours(model: FCN, rgb: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(rgb).permute(2, 0, 1)[None])[0].numpy()


def assert_same(
    network: CaffeNetwork, path: Path, model: FCN, sizes: list[tuple[int, int]]
) -> None:
    images = [picture(height, width) for height, width in sizes]
    expected = run_opencv(network.prototxt, path, images)
    for rgb, theirs in zip(images, expected, strict=True):
        ours = run_ours(model, rgb)
        assert ours.shape == theirs.shape == (model.arguments["num_classes"], *rgb.shape[:2])
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max(), rgb.shape
        assert (ours.argmax(0) == theirs.argmax(0)).mean() >= 0.9999, rgb.shape


def save(folder: Path, content: bytes) -> Path:
    path = folder / "net.caffemodel"
    path.write_bytes(content)
    return path
