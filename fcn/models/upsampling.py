"""Every way this project upsamples scores, behind one interface.

Long et al. 2015, sec. 3.3: "upsampling with factor f is convolution with a fractional input stride
of 1/f [...] backwards convolution (sometimes called deconvolution) with an output stride of f".
A new choice is a subclass of `Upsampling`, an entry in `UPSAMPLINGS` at the end of this file, and a
file configs/upsampling/NAME.yaml; or a subclass in any package, upsampling._target_=PACKAGE.CLASS.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcn.models.fast_forms import fixed_form
from fcn.targets import import_class, reason_of

Size = tuple[int, int]


def kernel_size(factor: int) -> int:
    """Return the side of the bilinear kernel that upsamples by f: 2f for even f, 2f - 1 for odd."""
    return 2 * factor - factor % 2


def bilinear_kernel(size: int) -> Tensor:
    """Return the bilinear interpolation kernel of a transposed convolution.

    Args:
        size: kernel side k; it upsamples by f = (k + 1) // 2.

    Returns:
        float (k, k); the taps that meet any one output pixel sum to 1.

    Raises:
        ValueError: size < 1.

    Source: Long et al. 2015, sec. 3.3. For k = 4 the values are 1/16, 3/16 and 9/16.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    factor = (size + 1) // 2
    tent = 1 - (torch.arange(size) - (size - 1) / 2).abs() / factor
    return tent.outer(tent)


class Upsampling(nn.Module):
    """Upsample scores like a transposed convolution of stride `factor` without padding.

    A subclass implements `full(score)`: float (B, K, h, w) -> (B, K, (h-1)f + k, (w-1)f + k), with
    f = `factor` and k = `kernel`: the rows and columns that one score reaches, by default those of
    the bilinear kernel. Its weights learn without decay, and stay float32 under autocast. All its
    tensors are parameters or persistent buffers, which loading fills.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.kernel = kernel_size(factor)

    def forward(self, score: Tensor, offset: int = 0, size: Size | None = None) -> Tensor:
        """Return a window of the full result.

        Args:
            score: float (B, K, h, w).
            offset: the window's first row and first column.
            size: (H, W), its rows and columns; None for all from `offset` on.

        Returns:
            float (B, K, H, W); float32 under autocast too: the cost is small, and rounding scores
            here moves argmax.
        """
        with torch.autocast(score.device.type, enabled=False):
            full = self.full(score if score.dtype == torch.float64 else score.float())
        height, width = size or (full.shape[-2], full.shape[-1])
        return full[..., offset : offset + height, offset : offset + width]

    def full(self, score: Tensor) -> Tensor:
        """Return the full result; every layer has a form of its own.

        Args:
            score: float32 or float64 (B, K, h, w).

        Returns:
            the same type (B, K, H, W), (H, W) as `full_size` says.
        """
        raise NotImplementedError

    def full_size(self, score: Tensor) -> Size:
        """Return rows and columns of the full result, (h-1)f + k and (w-1)f + k."""
        h, w = score.shape[-2:]
        return (h - 1) * self.factor + self.kernel, (w - 1) * self.factor + self.kernel

    def classwise(self) -> "Upsampling":
        """Return a layer that upsamples each class by itself, without what the others add to it."""
        return self

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


class FixedUpsampling(Upsampling):
    """Interpolate bilinearly; nothing is trained or stored, as in the authors' released networks.

    The same scores, up to rounding and at the boundary too, come from a transposed convolution with
    a bilinear kernel; from an interpolation, if zeros surround the scores; and, as the kernel is
    separable and the same for every class, from two small matrix products, U_h S U_w^T. Row y of U
    holds the tent's weights max(0, 1 - |y - (f i + centre)| / f) over the inputs i.
    """

    def forward(self, score: Tensor, offset: int = 0, size: Size | None = None) -> Tensor:
        form = fixed_form(self.factor, score)
        if form != "products":
            return super().forward(score, offset, size)
        if size is None:
            height, width = self.full_size(score)
            size = height - offset, width - offset
        with torch.autocast(score.device.type, enabled=False):
            score = score if score.dtype == torch.float64 else score.float()
            rows = self.matrix(score.shape[-2], offset, size[0], score)
            columns = self.matrix(score.shape[-1], offset, size[1], score)
            return rows @ (score @ columns.T)  # (H,h) ((B,K,h,w) (w,W)) -> B,K,H,W

    def full(self, score: Tensor) -> Tensor:
        score = score.contiguous(memory_format=torch.channels_last)
        if fixed_form(self.factor, score) == "interpolation":
            return interpolate(score, self, border="constant")
        classes = score.shape[1]
        kernels = bilinear_kernel(self.kernel).to(score).expand(classes, 1, -1, -1)
        return F.conv_transpose2d(score, kernels, stride=self.factor, groups=classes)

    def matrix(self, inputs: int, offset: int, outputs: int, like: Tensor) -> Tensor:
        """Return the one-dimensional transposed convolution as a matrix (outputs, inputs)."""
        y = torch.arange(offset, offset + outputs, device=like.device, dtype=like.dtype)
        i = torch.arange(inputs, device=like.device, dtype=like.dtype)
        distance = y[:, None] - (i * self.factor + (self.kernel - 1) / 2)
        return distance.abs_().div_(-self.factor).add_(1).clamp_(min=0)


class InterpolateUpsampling(Upsampling):
    """Interpolate bilinearly with `F.interpolate`, as torchvision's FCN does; nothing is trained.

    Equals `FixedUpsampling` inside; at the boundary it repeats the outermost scores, which there
    fade to zero. Unlike torchvision, it does not stretch the scores over the image: factor and
    alignment are those of the other layers.
    """

    def full(self, score: Tensor) -> Tensor:
        return interpolate(score, self, border="replicate")


def interpolate(score: Tensor, layer: Upsampling, border: str) -> Tensor:
    """Return scores interpolated to a layer's full size, with one row or column around them.

    Args:
        score: float (B, K, h, w).
        layer: its factor and size.
        border: "constant" for zeros, or "replicate", see `F.pad`.
    """
    padded = F.pad(score, (1, 1, 1, 1), mode=border)
    result = F.interpolate(padded, scale_factor=layer.factor, mode="bilinear")
    height, width = layer.full_size(score)
    first = (3 * layer.factor - layer.kernel) // 2  # one padded score is now f pixels wide
    return result[..., first : first + height, first : first + width]


class TransposedConvolution(Upsampling):
    """A transposed convolution of stride f with `kernels()`: what the learned layers share."""

    groups = 1

    def kernels(self) -> Tensor:
        """Return the kernels, (K, K / groups, k, k): input class first, then output class."""
        raise NotImplementedError

    def diagonal(self) -> Tensor:
        """Return each class's kernel onto itself, (K, k, k); a view if `kernels()` is a weight."""
        kernels = self.kernels()
        return kernels[:, 0] if self.groups > 1 else kernels.diagonal().permute(2, 0, 1)

    @torch.no_grad()
    def classwise(self) -> "Upsampling":
        """Return a layer of each class's kernel onto itself, scaled to keep a constant's size."""
        own = self.diagonal().float()
        layer = LearnedUpsampling(self.factor, len(own), channelwise=True).to(own.device)
        layer.weight.copy_((own * self.factor**2 / own.sum((1, 2), keepdim=True))[:, None])
        return layer

    @torch.no_grad()
    def drift(self) -> float:
        """Return the norm of the kernels' difference from bilinear ones, over the norm of these."""
        # On the CPU: Apple's GPUs have no float64.
        kernels, own = self.kernels().cpu().double(), self.diagonal().cpu().double()
        bilinear = bilinear_kernel(self.kernel).to(own)
        across = kernels.square().sum() - own.square().sum()  # of one class onto another
        change = (own - bilinear).square().sum() + across.clamp(min=0)
        return float((change / (bilinear.square().sum() * len(own))).sqrt())

    def full(self, score: Tensor) -> Tensor:
        kernels = self.kernels()
        score = score.to(kernels.dtype)
        if self.groups == 1:  # takes half the time on a CPU
            score = score.contiguous(memory_format=torch.channels_last)
        return F.conv_transpose2d(score, kernels, stride=self.factor, groups=self.groups)


class LearnedUpsampling(TransposedConvolution):
    """A learned transposed convolution without bias that starts as bilinear interpolation.

    It has one kernel for every pair of classes, (K, K, 2f, 2f), or if `channelwise` one per class,
    (K, 1, 2f, 2f). Source: Shelhamer et al. 2016, sec. 4.1.
    """

    def __init__(self, factor: int, num_classes: int, *, channelwise: bool = False) -> None:
        super().__init__(factor)
        self.groups = num_classes if channelwise else 1
        weight = torch.zeros(num_classes, num_classes // self.groups, self.kernel, self.kernel)
        self.weight = nn.Parameter(weight)
        with torch.no_grad():
            self.diagonal().copy_(bilinear_kernel(self.kernel))

    def kernels(self) -> Tensor:
        return self.weight


class NearestConvUpsampling(TransposedConvolution):
    """Nearest-neighbour upsampling by f, then a learned K x K convolution (Odena et al. 2016).

    Every output pixel meets all taps of the convolution, so a constant stays constant: this layer
    cannot produce checkerboards. It starts as bilinear interpolation: a box of f taps, which is
    nearest-neighbour upsampling, and q = (1/2, 1, ..., 1, 1/2) / f together make the tent. Both are
    computed as the one transposed convolution they equal, whose kernel is the f x f box convolved
    with the weight; the large map in between is never stored.
    """

    def __init__(self, factor: int, num_classes: int) -> None:
        super().__init__(factor)
        taps = self.kernel - factor + 1  # f + 1 for even f
        q = torch.ones(taps) / factor
        if factor % 2 == 0:
            q[[0, -1]] /= 2
        eye = torch.eye(num_classes)[..., None, None]
        self.weight = nn.Parameter(eye * q.outer(q))  # (out, in, taps, taps), as in nn.Conv2d

    def kernels(self) -> Tensor:
        f = self.factor
        flipped = self.weight.transpose(0, 1).flip(-2, -1)
        sums = F.pad(flipped, (f - 1,) * 4)
        for box in ((f, 1), (1, f)):  # f times an average is a sum; ONNX has no divisor_override
            sums = F.avg_pool2d(sums, box, stride=1) * f
        return sums


class NonlinearUpsampling(Upsampling):
    """A stack of n learned x2 layers with n - 1 ReLUs between them, for f = 2^n.

    "A stack of deconvolution layers and activation functions can even learn a nonlinear upsampling"
    (Long et al. 2015, sec. 3.3). Each class's ReLU bends at -`knee`, which is learned and starts at
    -1: at 0, scores that start at zero would get no gradient. For scores above the bend the stack
    starts as n bilinear doublings, slightly smoother than one bilinear upsampling by f.
    """

    def __init__(self, factor: int, num_classes: int) -> None:
        super().__init__(factor)
        doublings = factor.bit_length() - 1
        if factor < 2 or 2**doublings != factor:
            raise ValueError(f"nonlinear upsampling needs a factor 2, 4, 8, ..., got {factor}")
        self.kernel = 3 * factor - 2  # of n kernels of side 4: the pixels one score reaches
        self.layers = nn.ModuleList(LearnedUpsampling(2, num_classes) for _ in range(doublings))
        self.knees = nn.ParameterList(torch.ones(num_classes, 1, 1) for _ in range(doublings - 1))

    def classwise(self) -> "Upsampling":
        layer = copy.deepcopy(self)
        layer.layers = nn.ModuleList(part.classwise() for part in layer.layers)  # type: ignore[operator]
        return layer

    def full(self, score: Tensor) -> Tensor:
        score = self.layers[0](score)
        for knee, layer in zip(self.knees, self.layers[1:], strict=True):
            score = layer(F.relu(score + knee) - knee)
        return score


# Choice -> its layer, from the factor, the number of classes, and whether it is the last upsampling
# (to the image's size) or one between skips.
# cvpr15: "the final layer deconvolutional filters are fixed [...], while intermediate upsampling
# layers are initialized to bilinear upsampling, and then learned" (Long et al. 2015, sec. 4.3).
# A sub-pixel convolution (Shi et al. 2016) is `learned` in another memory order: not offered.
UPSAMPLINGS: dict[str, Callable[[int, int, bool], Upsampling]] = {
    "fixed": lambda f, k, final: FixedUpsampling(f),
    "learned": lambda f, k, final: LearnedUpsampling(f, k),
    "learned_channelwise": lambda f, k, final: LearnedUpsampling(f, k, channelwise=True),
    "cvpr15": lambda f, k, final: FixedUpsampling(f) if final else LearnedUpsampling(f, k),
    "nonlinear": lambda f, k, final: NonlinearUpsampling(f, k),
    "nearest_conv": lambda f, k, final: NearestConvUpsampling(f, k),
    "interpolate": lambda f, k, final: InterpolateUpsampling(f),
}


def make_upsampling(choice: str, factor: int, num_classes: int, *, final: bool) -> Upsampling:
    """Build the layer that `upsampling=choice` puts at one place of the network.

    Args:
        choice: a name in `UPSAMPLINGS`, or PACKAGE.CLASS, a subclass of `Upsampling` that is built
            from the factor and the number of classes.
        factor: f.
        num_classes: K.
        final: whether it is the last one, which brings scores to the image's own size.

    Raises:
        ValueError: an unknown choice, or a layer whose full result has another size.
    """
    if "." in choice:
        layer = _own_layer(choice, factor, num_classes)
    elif choice in UPSAMPLINGS:
        layer = UPSAMPLINGS[choice](factor, num_classes, final)
    else:
        raise ValueError(
            f"upsampling must be one of {', '.join(UPSAMPLINGS)}, got {choice!r}; register a new "
            "one in UPSAMPLINGS in fcn/models/upsampling.py and add configs/upsampling/NAME.yaml"
        )
    score = torch.zeros(1, num_classes, 2, 3)
    if score.is_meta:  # which autocast does not know
        return layer
    shape, expected = tuple(layer(score).shape), (1, num_classes, *layer.full_size(score))
    if shape != expected:
        raise ValueError(
            f"{type(layer).__name__}.full(score) must have (h - 1) * factor + kernel rows and "
            f"(w - 1) * factor + kernel columns: {expected}, got {shape}"
        )
    return layer


def _own_layer(name: str, factor: int, num_classes: int) -> Upsampling:
    """Build a layer of another package; nothing but a subclass of `Upsampling` is called."""
    try:
        kind: Any = import_class(name)
        if not issubclass(kind, Upsampling):
            raise TypeError("it is no subclass of fcn.models.upsampling.Upsampling")
        return kind(factor, num_classes)
    except ImportError as error:
        raise ValueError(
            f"upsampling {name}: {error}; install the package that has it, or add its folder to "
            "PYTHONPATH"
        ) from error
    except Exception as error:  # of whatever the user wrote
        raise ValueError(f"upsampling {name}: {reason_of(error)}") from error
