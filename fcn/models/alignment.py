"""Where the output of a layer lies on its input: coordinate maps, and the crops that follow.

Output index i of a layer (or a chain) sits at input coordinate scale * i + offset. Composed along
two branches of a net, the maps say by how much one must be cropped to lie on the other; so no crop
offset is ever typed in. The idea is the authors' own (Caffe's coord_map.py). How far around its
place an output sees is composed along with them: half the receptive field.
"""

from dataclasses import dataclass, field
from fractions import Fraction

from torch import nn

from fcn.models.upsampling import Upsampling


@dataclass(frozen=True)
class CoordinateMap:
    """Output index i sits at input coordinate scale * i + offset (exact fractions).

    It depends on inputs up to `reach` away from there, and on none beyond. Two maps are equal if
    they put outputs at the same places.
    """

    scale: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)
    reach: Fraction = field(default=Fraction(0), compare=False)

    def then(self, following: "CoordinateMap") -> "CoordinateMap":
        """The map of this layer followed by another."""
        return CoordinateMap(
            self.scale * following.scale,
            self.scale * following.offset + self.offset,
            self.scale * following.reach + self.reach,
        )

    def index_in(self, other: "CoordinateMap") -> int:
        """The index in `other` at the place of index 0 here: how far to crop `other`.

        Raises: ValueError: the two grids differ in scale, or lie a fraction of a step apart.
        """
        steps = (self.offset - other.offset) / other.scale
        if self.scale != other.scale or steps.denominator != 1:
            raise ValueError(f"{self} and {other} do not lie on one grid")
        return int(steps)


def window(kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> CoordinateMap:
    """The map of a convolution or a pooling: each output sits at the centre of its window."""
    reach = Fraction(dilation * (kernel - 1), 2)
    return CoordinateMap(Fraction(stride), reach - padding, reach)


def transposed(kernel: int, stride: int, padding: int = 0) -> CoordinateMap:
    """The map of a transposed convolution: the inverse of that of its convolution."""
    forward = window(kernel, stride, padding)
    return CoordinateMap(
        1 / forward.scale, -forward.offset / forward.scale, forward.reach / forward.scale
    )


def coordinate_map(layer: nn.Module) -> CoordinateMap:
    """The map of a layer or a chain of layers, read off its own settings.

    Raises: TypeError: a layer whose geometry is not known here.
    """
    if isinstance(layer, nn.Conv2d):
        assert isinstance(layer.padding, tuple), "padding given as a word has no one offset"
        return window(layer.kernel_size[0], layer.stride[0], layer.padding[0], layer.dilation[0])
    if isinstance(layer, nn.MaxPool2d):
        kernel, stride, padding = layer.kernel_size, layer.stride, layer.padding
        assert isinstance(kernel, int)
        assert isinstance(stride, int)
        assert isinstance(padding, int)
        return window(kernel, stride, padding)
    if isinstance(layer, Upsampling):
        return transposed(layer.kernel, layer.factor)
    if isinstance(layer, nn.Sequential):
        total = CoordinateMap()
        for part in layer:
            total = total.then(coordinate_map(part))
        return total
    if isinstance(layer, nn.ReLU | nn.BatchNorm2d | nn.Dropout):
        return CoordinateMap()
    raise TypeError(f"no coordinate map is known for {type(layer).__name__}")
