"""Where the output of a layer lies on its input: coordinate maps, and the crops that follow.

Composed along two branches of a network, the maps say by how much one must be cropped to lie on the
other. The idea is the authors' own (Caffe's coord_map.py).
"""

from dataclasses import dataclass, field
from fractions import Fraction

from torch import nn

from fcn.models.upsampling import Upsampling


@dataclass(frozen=True)
class CoordinateMap:
    """Output index i sits at input coordinate scale * i + offset (exact fractions).

    It depends on inputs up to `reach` (half the receptive field) away from there, and on none
    beyond. Maps that differ in reach alone are equal.
    """

    scale: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)
    reach: Fraction = field(default=Fraction(0), compare=False)

    def then(self, following: "CoordinateMap") -> "CoordinateMap":
        """Return the map of this layer followed by another."""
        return CoordinateMap(
            self.scale * following.scale,
            self.scale * following.offset + self.offset,
            self.scale * following.reach + self.reach,
        )

    def index_in(self, other: "CoordinateMap") -> int:
        """Return the index in `other` at the place of index 0 here: how far to crop `other`.

        Raises:
            ValueError: the two grids differ in scale, or lie a fraction of a step apart.
        """
        steps = (self.offset - other.offset) / other.scale
        if self.scale != other.scale or steps.denominator != 1:
            raise ValueError(f"{self} and {other} do not lie on one grid")
        return int(steps)


def coordinate_map(layer: nn.Module) -> CoordinateMap:
    """Return the map of a layer or a chain of layers, read from its own settings.

    Args:
        layer: a convolution, pooling, upsampling or elementwise layer, or an nn.Sequential of them.

    Raises:
        TypeError: a layer whose geometry is not known here.
    """
    if isinstance(layer, nn.Sequential):
        total = CoordinateMap()
        for part in layer:
            total = total.then(coordinate_map(part))
        return total
    if isinstance(layer, Upsampling):  # the inverse of the convolution that it transposes
        centre = Fraction(layer.kernel - 1, 2) / layer.factor
        return CoordinateMap(Fraction(1, layer.factor), -centre, centre)
    if isinstance(layer, nn.Conv2d | nn.MaxPool2d):  # each output sits at its window's centre
        kernel, stride, padding, dilation = (
            # Convolutions hold a setting per axis, poolings one number; both are square here.
            setting[0] if isinstance(setting, tuple) else int(setting)
            for setting in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        )
        reach = Fraction(dilation * (kernel - 1), 2)
        return CoordinateMap(Fraction(stride), reach - padding, reach)
    if isinstance(layer, nn.ReLU | nn.BatchNorm2d | nn.Dropout):
        return CoordinateMap()
    raise TypeError(f"no coordinate map is known for {type(layer).__name__}")
