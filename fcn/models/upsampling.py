"""Every way this project upsamples scores, behind one interface.

Long et al. 2015, sec. 3.3: "upsampling with factor f is convolution with a fractional input stride
of 1/f [...] backwards convolution (sometimes called deconvolution) with an output stride of f".
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Size = tuple[int, int]


def kernel_size(factor: int) -> int:
    """Side of the bilinear kernel that upsamples by `factor`: 2f for even f, 2f - 1 for odd."""
    if factor < 1:
        raise ValueError(f"factor must be at least 1, got {factor}")
    return 2 * factor - factor % 2


def bilinear_kernel(size: int) -> Tensor:
    """Bilinear interpolation as a transposed-convolution kernel.

    Args: size: kernel side k; upsamples by f = (k + 1) // 2.
    Returns: float (k, k); the taps that meet any one output pixel sum to 1.
    Raises: ValueError: size < 1.
    Source: Long et al. 2015, sec. 3.3. For k = 4 the values are 1/16, 3/16 and 9/16.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    factor = (size + 1) // 2
    tent = 1 - (torch.arange(size) - (size - 1) / 2).abs() / factor
    return tent.outer(tent)


class Upsampling(nn.Module):
    """Upsamples a score map by `factor`, as a transposed convolution of stride f without padding.

    forward(score, offset=0, size=None): float (B, K, h, w) -> the window of `size` (H, W) that
    starts at row and column `offset` of the full (B, K, (h-1)f + k, (w-1)f + k) result, where k is
    `kernel`. Without `size`, everything from `offset` on.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.kernel = kernel_size(factor)

    def full_size(self, score: Tensor) -> Size:
        h, w = score.shape[-2:]
        return (h - 1) * self.factor + self.kernel, (w - 1) * self.factor + self.kernel

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


class FixedUpsampling(Upsampling):
    """Bilinear, nothing trainable, nothing stored: what the authors' released nets do.

    A bilinear kernel is separable and the same for every class, so the transposed convolution is
    two small matrix products, U_h S U_w^T, borders included. Row y of U holds the tent's weights
    max(0, 1 - |y - (f i + centre)| / f) over the inputs i. Only the window asked for is computed.
    """

    def forward(self, score: Tensor, offset: int = 0, size: Size | None = None) -> Tensor:
        if size is None:
            height, width = self.full_size(score)
            size = height - offset, width - offset
        # In float32 under autocast too: the cost is small, and rounding scores here moves argmax.
        with torch.autocast(score.device.type, enabled=False):
            score = score if score.dtype == torch.float64 else score.float()
            rows = self.matrix(score.shape[-2], offset, size[0], score)
            columns = self.matrix(score.shape[-1], offset, size[1], score)
            return rows @ score @ columns.T  # (H,h) (B,K,h,w) (w,W) -> B,K,H,W

    def matrix(self, inputs: int, offset: int, outputs: int, like: Tensor) -> Tensor:
        """The one-dimensional transposed convolution as a matrix (outputs, inputs)."""
        y = torch.arange(offset, offset + outputs, device=like.device, dtype=like.dtype)
        i = torch.arange(inputs, device=like.device, dtype=like.dtype)
        distance = y[:, None] - (i * self.factor + (self.kernel - 1) / 2)
        return distance.abs_().div_(-self.factor).add_(1).clamp_(min=0)


class InterpolateUpsampling(Upsampling):
    """`F.interpolate`, bilinear, as torchvision's FCN upsamples; nothing trainable.

    `FixedUpsampling` inside; at the border the outermost scores go on instead of fading to zero.
    torchvision stretches the scores over the image; here factor and place are the other layers'.
    """

    def forward(self, score: Tensor, offset: int = 0, size: Size | None = None) -> Tensor:
        height, width = self.full_size(score) if size is None else size
        with torch.autocast(score.device.type, enabled=False):  # as FixedUpsampling
            score = score if score.dtype == torch.float64 else score.float()
            padded = F.pad(score, (1, 1, 1, 1), mode="replicate")
            result = F.interpolate(padded, scale_factor=self.factor, mode="bilinear")
        first = (3 * self.factor - self.kernel) // 2 + offset  # the pad is f wide by now
        return result[..., first : first + height, first : first + width]


class TransposedConvolution(Upsampling):
    """What the learned layers share: a transposed convolution of stride f with `kernels()`."""

    groups = 1

    def kernels(self) -> Tensor:
        """The layer's kernels, (K, K / groups, k, k), first the class read, then the one written.

        Raises: NotImplementedError: this layer is no single transposed convolution.
        """
        raise NotImplementedError

    def diagonal(self) -> Tensor:
        """Each class's kernel onto itself, (K, k, k): a view, where `kernels` is the parameter."""
        kernels = self.kernels()
        return kernels[:, 0] if self.groups > 1 else kernels.diagonal().permute(2, 0, 1)

    @torch.no_grad()
    def drift(self) -> float:
        """How far the kernels are from bilinear: norm of the difference over bilinear's norm."""
        kernels, own = self.kernels().double(), self.diagonal().double()
        bilinear = bilinear_kernel(self.kernel).to(own)
        across = (
            kernels.square().sum() - own.square().sum()
        )  # of one class onto another: 0 at first
        change = (own - bilinear).square().sum() + across.clamp(min=0)
        return float((change / (bilinear.square().sum() * len(own))).sqrt())

    def forward(self, score: Tensor, offset: int = 0, size: Size | None = None) -> Tensor:
        with torch.autocast(score.device.type, enabled=False):  # as FixedUpsampling
            kernels = self.kernels()
            score = score.to(kernels.dtype)
            if self.groups == 1:  # takes a CPU half the time so
                score = score.contiguous(memory_format=torch.channels_last)
            full = F.conv_transpose2d(score, kernels, stride=self.factor, groups=self.groups)
        return window(full, offset, size)


class LearnedUpsampling(TransposedConvolution):
    """Transposed convolution, no bias, bilinear at the start: the surgery of PAMI 2016, sec. 4.1.

    Args: channelwise: one kernel a class, (K, 1, 2f, 2f), instead of all pairs, (K, K, 2f, 2f).
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
    """Nearest-neighbour upsampling by f, then a K x K convolution (Odena et al. 2016).

    Every output pixel meets all taps of the convolution, so a constant stays constant: this layer
    cannot draw checkerboards. It is bilinear at the start: a box of f taps, which nearest-neighbour
    is, and q = (1/2, 1, ..., 1, 1/2) / f make the tent between them. The two are computed as the
    one transposed convolution that they equal, with the f x f box times q as its kernel; the large
    map in between never exists.
    """

    def __init__(self, factor: int, num_classes: int) -> None:
        super().__init__(factor)
        taps = self.kernel - factor + 1  # f + 1 for even f
        q = torch.ones(taps) / factor
        if factor % 2 == 0:
            q[[0, -1]] /= 2
        eye = torch.eye(num_classes)[..., None, None]
        self.weight = nn.Parameter(eye * q.outer(q))  # (out, in, taps, taps), as of nn.Conv2d

    def kernels(self) -> Tensor:
        f = self.factor
        flipped = self.weight.transpose(0, 1).flip(-2, -1)
        sums = F.pad(flipped, (f - 1,) * 4)
        for box in ((f, 1), (1, f)):  # f averages are a sum; ONNX has no divisor_override
            sums = F.avg_pool2d(sums, box, stride=1) * f
        return sums


class NonlinearUpsampling(Upsampling):
    """A stack of learned x2 layers with ReLU between, from f = 2^n: n layers, n - 1 ReLUs.

    "A stack of deconvolution layers and activation functions can even learn a nonlinear upsampling"
    (Long et al. 2015, sec. 3.3). Each class's ReLU has its corner at -`knee`, learned, at first -1
    (a deconvolution's bias before it, taken off after it): with the corner at 0, score layers that
    start at zero would sit on it and get no gradient. Above the corner the stack starts as n
    bilinear doublings in a row, a little smoother than one x f.

    Raises: ValueError: the factor is no power of two above 1.
    """

    def __init__(self, factor: int, num_classes: int) -> None:
        super().__init__(factor)
        doublings = factor.bit_length() - 1
        if factor < 2 or 2**doublings != factor:
            raise ValueError(f"nonlinear upsampling needs a factor 2, 4, 8, ..., got {factor}")
        self.kernel = 3 * factor - 2  # of n kernels of 4 in a row: what one score reaches
        self.layers = nn.ModuleList(LearnedUpsampling(2, num_classes) for _ in range(doublings))
        self.knees = nn.ParameterList(torch.ones(num_classes, 1, 1) for _ in range(doublings - 1))

    def forward(self, score: Tensor, offset: int = 0, size: Size | None = None) -> Tensor:
        score = self.layers[0](score)
        for knee, layer in zip(self.knees, self.layers[1:], strict=True):
            score = layer(F.relu(score + knee) - knee)
        return window(score, offset, size)


def window(full: Tensor, offset: int, size: Size | None) -> Tensor:
    """Rows and columns of `full` (B, K, H, W) from `offset` on, as many as `size` says, or all."""
    height, width = size if size is not None else (full.shape[-2], full.shape[-1])
    return full[..., offset : offset + height, offset : offset + width]


# Choice -> what upsamples between the skips, and what brings the scores to the image's size.
# cvpr15: "the final layer deconvolutional filters are fixed [...], while intermediate upsampling
# layers are initialized to bilinear upsampling, and then learned" (Long et al. 2015, sec. 4.3).
# A sub-pixel convolution (Shi et al. 2016) is `learned` in another memory order: not a choice.
UPSAMPLINGS = {
    "fixed": ("fixed", "fixed"),
    "learned": ("learned", "learned"),
    "learned_channelwise": ("channelwise", "channelwise"),
    "cvpr15": ("learned", "fixed"),
    "nonlinear": ("nonlinear", "nonlinear"),
    "nearest_conv": ("nearest_conv", "nearest_conv"),
    "interpolate": ("interpolate", "interpolate"),
}


def make_upsampling(choice: str, factor: int, num_classes: int, *, final: bool) -> Upsampling:
    """The layer that `upsampling=choice` puts at one place of the net.

    Args: final: whether it is the last one, which brings scores to the image's own size.
    Raises: ValueError: an unknown choice.
    """
    if choice not in UPSAMPLINGS:
        raise ValueError(f"upsampling must be one of {', '.join(UPSAMPLINGS)}, got {choice!r}")
    match UPSAMPLINGS[choice][final]:
        case "fixed":
            return FixedUpsampling(factor)
        case "interpolate":
            return InterpolateUpsampling(factor)
        case "nearest_conv":
            return NearestConvUpsampling(factor, num_classes)
        case "nonlinear":
            return NonlinearUpsampling(factor, num_classes)
        case kind:
            return LearnedUpsampling(factor, num_classes, channelwise=kind == "channelwise")
