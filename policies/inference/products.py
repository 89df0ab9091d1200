"""Convolutions over a short chunk as matrix products, on time-major tensors (T, M, C).

A chunk of 4 to 16 moments is too short for a convolution kernel: most of its work is packing
weights and stepping over padding. As products, weights are read once in the order in which they
lie. ``Taps`` multiplies as many numbers as the convolution, reads the fewest weights, and is best
for one sample. ``Toom`` multiplies 40 % as many for 60 % more weights, and is best for a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import cast

import torch
from torch import nn
from torch.nn import functional

__all__ = ["Grow", "Taps", "Toom", "convolution", "toom_cook"]

TILE = 4
# Small and few-digit, each with its negative: what is lost to rounding grows with their powers.
POINTS = tuple(Fraction(p) for p in ("0", "1", "-1", "1/2", "-1/2", "2", "-2"))


class _Shifted(nn.Module):
    """(T, M, C), zero outside, at ``stride`` i + each offset, side by side: (``outputs``, M, n C).

    Lengths are fixed here, so that a traced graph holds them as numbers.
    """

    def __init__(self, offsets: Sequence[int], length: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.outputs = outputs
        span = (outputs - 1) * stride + 1
        self.before = max(0, -min(offsets))
        self.after = max(0, max(offsets) + span - length)
        self.slices = [
            slice(self.before + offset, self.before + offset + span, stride) for offset in offsets
        ]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = functional.pad(x, (0, 0, 0, 0, self.before, self.after))
        return torch.cat([padded[part] for part in self.slices], dim=-1)


class Taps(nn.Module):
    """A convolution (T, M, in) -> (T / stride, M, out) as one product with all its taps."""

    def __init__(self, of: nn.Conv1d, length: int) -> None:
        super().__init__()
        (taps,), (padding,), (stride,) = of.kernel_size, cast(tuple[int], of.padding), of.stride
        outputs = (length + 2 * padding - taps) // stride + 1
        offsets = [tap - padding for tap in range(taps)]
        self.shifted = _Shifted(offsets, length, outputs, stride)
        self.weight = nn.Parameter(of.weight.detach().permute(0, 2, 1).flatten(1).contiguous())
        self.bias = of.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(self.shifted(x), self.weight, self.bias)


class Grow(nn.Module):
    """A transposed convolution of kernel 4, stride 2, padding 1: (T, M, in) -> (2 T, M, out).

    Moment 2 i takes taps 3 and 1 of moments i - 1 and i; 2 i + 1 takes 2 and 0 of i and i + 1.
    """

    def __init__(self, of: nn.ConvTranspose1d, length: int) -> None:
        super().__init__()
        weight = of.weight.detach()
        self.before, self.after = (_Shifted(pair, length, length) for pair in ((-1, 0), (0, 1)))
        self.even = nn.Parameter(torch.cat((weight[..., 3], weight[..., 1])).t().contiguous())
        self.odd = nn.Parameter(torch.cat((weight[..., 2], weight[..., 0])).t().contiguous())
        self.bias = of.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        even = functional.linear(self.before(x), self.even, self.bias)
        odd = functional.linear(self.after(x), self.odd, self.bias)
        return torch.stack((even, odd), dim=1).flatten(0, 1)


class Toom(nn.Module):
    """A convolution of stride 1 that keeps its length, by Toom and Cook's method (for short
    filters Winograd's, 1980): in tiles of 4 moments, 8 products in the place of 4 x 5.

    Both sides are evaluated at 8 points, multiplied there, and interpolated. Rounding: about ten
    times that of the convolution, 1e-6 of the result.
    """

    before: torch.Tensor
    after: torch.Tensor

    def __init__(self, of: nn.Conv1d, length: int) -> None:
        super().__init__()
        (taps,), (padding,) = of.kernel_size, cast(tuple[int], of.padding)
        interpolate, evaluate, split = toom_cook(TILE, taps)
        self.inside, self.outside = of.in_channels, of.out_channels
        self.tiles = tiles = length // TILE
        points = TILE + taps - 1
        before = torch.zeros(points, tiles, length, dtype=torch.float64)
        after = torch.zeros(length, points, tiles, dtype=torch.float64)
        for tile in range(tiles):
            for column in range(points):
                moment = TILE * tile + column - padding
                if 0 <= moment < length:
                    before[:, tile, moment] = split[:, column]
            after[TILE * tile : TILE * (tile + 1), :, tile] = interpolate
        self.register_buffer("before", before.flatten(0, 1).float())
        self.register_buffer("after", after.flatten(1, 2).float())
        at = torch.einsum("pk,oik->poi", evaluate, of.weight.detach().double().cpu())
        self.weights = nn.ParameterList(w.float().contiguous() for w in at)
        self.bias = of.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        at = torch.unflatten(self.before @ x.flatten(1), 1, (-1, self.inside))
        products = [
            functional.linear(at[i * self.tiles : (i + 1) * self.tiles], weight)
            for i, weight in enumerate(self.weights)
        ]
        joined = torch.cat(products, dim=0).flatten(1)
        product = torch.unflatten(self.after @ joined, 1, (-1, self.outside))
        return product if self.bias is None else product + self.bias


def convolution(of: nn.Conv1d, length: int, batched: bool) -> nn.Module:
    """The product that does what a convolution of chunks of ``length`` does."""
    (taps,), (padding,) = of.kernel_size, cast(tuple[int], of.padding)
    keeps_length = of.stride == (1,) and 2 * padding == taps - 1
    fits = length % TILE == 0 and 1 < taps <= len(POINTS) + 2 - TILE
    return Toom(of, length) if batched and keeps_length and fits else Taps(of, length)


def toom_cook(outputs: int, taps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A (outputs, n), G (n, taps) and B (n, n), n = outputs + taps - 1, all float64, such that

        y_i = sum_k g_k d_{i + k}   is   y = A ((G g) * (B d)).

    The polynomial product of ``outputs`` and ``taps`` coefficients is found from its values at
    n - 1 points and at infinity; the filter is that algorithm, transposed.
    """
    n = outputs + taps - 1
    points = POINTS[: n - 1]
    if len(points) < n - 1:
        raise ValueError(f"{outputs} outputs and {taps} taps need {n - 1} points of {len(POINTS)}")

    def values(width: int) -> list[list[Fraction]]:
        last = [Fraction(int(i == width - 1)) for i in range(width)]
        return [*([p**i for i in range(width)] for p in points), last]

    # Rows of the interpolation: Lagrange's polynomials; the product's leading coefficient is its
    # value at infinity, which is taken off the others with prod (x - p).
    columns: list[list[Fraction]] = []
    for p in points:
        scale = Fraction(1)
        for q in points:
            scale *= (p - q) if q != p else 1
        columns.append([c / scale for c in _expand([q for q in points if q != p])] + [Fraction(0)])
    columns.append(_expand(list(points)))
    # Row scales go to G, which is applied once, in float64.
    split, filters = [], values(taps)
    for i, column in enumerate(columns):
        largest = max(abs(c) for c in column)
        split.append([c / largest for c in column])
        filters[i] = [largest * value for value in filters[i]]
    return (
        torch.tensor([[float(v) for v in row] for row in values(outputs)], dtype=torch.float64).t(),
        torch.tensor([[float(v) for v in row] for row in filters], dtype=torch.float64),
        torch.tensor([[float(v) for v in row] for row in split], dtype=torch.float64),
    )


def _expand(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients of prod (x - root), lowest first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [
            shifted[i] - (root * coefficients[i] if i < len(coefficients) else 0)
            for i in range(len(shifted))
        ]
    return coefficients
