"""The fastest form of each layer on the device at hand; the scores are the same up to rounding.

Measured for FCN-8s on two kinds of processor, those with AVX-512 and bfloat16 products, and those
with AVX2 alone, as most have. `python scripts/benchmark.py` measures the speed-up.
"""

import torch
from torch import Tensor, nn

AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2"  # and nothing above it
WIDE = 1024  # channels


def runs_on_cpu(image: Tensor) -> bool:
    """Return True if PyTorch computes this image on a CPU, now.

    Other devices have fast kernels of their own for every layer, and an exported file should name
    the layer itself.
    """
    return image.device.type == "cpu" and not torch.compiler.is_exporting()


def weight_layout(device: torch.device) -> torch.memory_format:
    """Return the layout in which a device keeps the weights of convolutions.

    A GPU wants channels_last. A CPU's convolutions reorder their weights anyway, and its optimiser
    would copy any layout but contiguous. On Apple's GPUs the backward pass of batch norm is wrong
    for channels_last (pytorch#175189).
    """
    return torch.contiguous_format if device.type in ("cpu", "mps") else torch.channels_last


def image_layout(layer: nn.Conv2d, image: Tensor, width: int) -> torch.memory_format:
    """Return the layout of the images that a convolution of the backbone takes.

    channels_last is the fastest, with two exceptions. In float32 with AVX2, the backward pass of
    VGG's convolutions takes twice as long as with contiguous images; the narrow `mini` net spends
    its time elsewhere. Apple's GPUs need contiguous images, see `weight_layout`.

    Args:
        layer: the convolution.
        image: its input.
        width: channels of the network's first stage.
    """
    avx2 = image.device.type == "cpu" and AVX2 and not torch.is_autocast_enabled("cpu")
    contiguous = avx2 and width >= 64 and needs_weight_gradient(layer)
    contiguous |= image.device.type == "mps"
    return torch.contiguous_format if contiguous else torch.channels_last


def needs_weight_gradient(layer: nn.Conv2d) -> bool:
    """Return True if a gradient of the layer's weights will be computed from this call."""
    return torch.is_grad_enabled() and layer.weight.requires_grad


def uses_matrix_product(layer: nn.Conv2d, image: Tensor) -> bool:
    """Return True if a convolution is to be computed as one product with the image's patches.

    A CPU's convolution copies its weights to another layout at every call. With fc6's 103 million
    of them training takes 30 % to 45 % longer; narrow ones, as in `mini`, are faster as they are.

    The product is also necessary in two cases, where oneDNN 3.13's convolution in bfloat16 (with
    avx512_bf16) is wrong in the backward pass:
    - 1 x 1 from 4096 channels to fewer than 16: it writes out of bounds;
    - 7 x 7 with padding 3 from 128 channels or more, on maps of 1 or 2 rows: the gradient of the
      taps that meet no row of the map stays uninitialised memory. (Likewise 5 x 5 on 1 row, 9 x 9
      on 1 to 3 rows; never 3 x 3, few columns, or paddings other than half the kernel.)
    In float32 these maps take the product too, as oneDNN may compute it in bfloat16
    (ONEDNN_DEFAULT_FPMATH_MODE). `mini` trains a fifth faster by it on crops of 64 x 64, and a
    tenth slower on strips of 64 x 384.
    """
    if not runs_on_cpu(image):
        return False
    low = needs_weight_gradient(layer) and image.shape[-2] < int(layer.padding[0])
    return low or layer.kernel_size == (1, 1) or layer.out_channels >= WIDE


def fixed_form(factor: int, score: Tensor) -> str:
    """Return how bilinear upsampling is computed: convolution, interpolation or products.

    A transposed convolution is the fastest for small kernels (x2: 2 ms, products take 35). For
    larger ones it is interpolation, up to x16, unless gradients are needed: its backward pass takes
    twice the time of the products'.
    """
    if not runs_on_cpu(score):
        return "products"
    if factor < 4:
        return "convolution"
    return "products" if torch.is_grad_enabled() or factor > 16 else "interpolation"
