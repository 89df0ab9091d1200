"""Trained networks taken apart: what depends on the observation, on the step, and on the chunk.

FiLM conditions a network on both the observation and the noise level, but the first layer behind
the two is linear, so each one's share can be computed alone: the observation's once an encode, the
level's once a model. What remains for the loop is the chunk's own way through the network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from policies.inference.products import Grow, convolution
from policies.models.mlp import FilmMlp
from policies.models.network import ChunkNetwork
from policies.models.unet import ConvBlock, ResidualBlock, Unet

__all__ = ["Layout", "Parts", "Projection", "take_apart"]


class Projection(nn.Module, ABC):
    """What the observations and the steps at ``times`` give to the films of a network."""

    films: int  # numbers a sample and step

    @abstractmethod
    def forward(self, condition: torch.Tensor) -> torch.Tensor:
        """Condition (B, To, F) -> projected (B, P), once an encode; rows may be repeated."""

    @abstractmethod
    def at(self, projected: torch.Tensor, step: int) -> torch.Tensor:
        """Projected (M, P) -> the films (M, ``films``) of a step."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a body takes chunks: with ``time_major`` as (Tp, M, D), channels together and moments as
    rows of the products; otherwise each as one row, (M, Tp D)."""

    time_major: bool
    horizon: int

    @property
    def samples_at(self) -> int:
        """The dimension of the samples."""
        return 1 if self.time_major else 0

    def lay(self, chunk: torch.Tensor) -> torch.Tensor:
        """(M, Tp, D) in this layout, contiguous."""
        laid = chunk.transpose(0, 1) if self.time_major else chunk.flatten(1)
        return laid.contiguous()

    def unlay(self, laid: torch.Tensor) -> torch.Tensor:
        """The inverse of ``lay``."""
        if self.time_major:
            return laid.transpose(0, 1)
        return torch.unflatten(laid, 1, (self.horizon, -1))


@dataclass(frozen=True, slots=True)
class Parts:
    """A network taken apart.

    ``body(batched)`` makes the chunk's way through it, x as ``layout`` lays it and films (M,
    ``films``) -> the network's answer as laid: the form for one sample or for many, which are the
    same where ``forms`` is 1. Bodies are made when needed: each is all weights again.
    """

    projection: Projection
    layout: Layout
    body: Callable[[bool], nn.Module]
    forms: int


def take_apart(network: ChunkNetwork, times: Sequence[float], horizon: int) -> Parts | None:
    """A network's parts, for steps told as ``times``. None for a kind that is not taken apart."""
    with torch.no_grad():
        told = torch.tensor(times, device=next(network.parameters()).device)
        if isinstance(network, Unet):
            return Parts(
                _UnetProjection(network, told),
                Layout(True, horizon),
                lambda batched: _UnetBody(network, horizon, batched).requires_grad_(False).eval(),
                forms=2,
            )
        if isinstance(network, FilmMlp):
            return Parts(
                _MlpProjection(network, told),
                Layout(False, horizon),
                lambda batched: _MlpBody(network).eval(),
                forms=1,
            )
    return None


class _UnetProjection(Projection):
    """Behind the Mish of (step, condition) stands one linear layer: a sum of two products."""

    table: torch.Tensor

    def __init__(self, network: Unet, times: torch.Tensor) -> None:
        super().__init__()
        weight = torch.cat([block.film.weight for block in network.residuals]).detach()
        bias = torch.cat([block.film.bias for block in network.residuals]).detach()
        step = functional.mish(network.step(times)).detach()
        width = step.shape[-1]
        self.films = len(bias)
        self.weight = nn.Parameter(weight[:, width:].contiguous())
        self.register_buffer("table", step @ weight[:, :width].t() + bias)

    def forward(self, condition: torch.Tensor) -> torch.Tensor:
        return functional.linear(functional.mish(condition.flatten(1)), self.weight)

    def at(self, projected: torch.Tensor, step: int) -> torch.Tensor:
        return projected + self.table[step]


class _MlpProjection(Projection):
    """Linear in (condition, step) up to the first activation; from there on each step has its
    own numbers, which are all computed at once."""

    table: torch.Tensor

    def __init__(self, network: FilmMlp, times: torch.Tensor) -> None:
        super().__init__()
        first, _, second, _ = network.condition
        assert isinstance(first, nn.Linear)
        self.second = second
        step = network.step(times).detach()
        width = first.in_features - step.shape[-1]
        self.weight = nn.Parameter(first.weight.detach()[:, :width].contiguous())
        self.register_buffer("table", step @ first.weight.detach()[:, width:].t() + first.bias)
        layers = _linears(network)
        self.film = nn.Parameter(torch.cat([layer.weight for layer in layers]).detach())
        self.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]).detach())
        self.films = len(self.bias)

    def forward(self, condition: torch.Tensor) -> torch.Tensor:
        mine = functional.linear(condition.flatten(1), self.weight).unsqueeze(1)
        joined = functional.mish(self.second(functional.mish(mine + self.table)))
        return functional.linear(joined, self.film, self.bias).flatten(1)

    def at(self, projected: torch.Tensor, step: int) -> torch.Tensor:
        return projected[:, step * self.films : (step + 1) * self.films].contiguous()


def _linears(network: FilmMlp) -> list[nn.Linear]:
    return [cast(nn.Linear, block.get_submodule("film")) for block in network.blocks]


class _ConvBlock(nn.Module):
    """Convolution, group norm, Mish on (T, M, C)."""

    def __init__(self, of: ConvBlock, length: int, batched: bool) -> None:
        super().__init__()
        conv, norm, _ = cast(tuple[nn.Conv1d, nn.GroupNorm, nn.Mish], tuple(of))
        self.convolve = convolution(conv, length, batched)
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grouped = self.convolve(x).unflatten(-1, (self.groups, -1))
        centred = grouped - grouped.mean(dim=(0, 3), keepdim=True)
        variance = (centred * centred).mean(dim=(0, 3), keepdim=True)
        normal = (centred * torch.rsqrt(variance + self.eps)).flatten(-2)
        return functional.mish(normal * self.weight + self.bias)


class _ResidualBlock(nn.Module):
    def __init__(self, of: ResidualBlock, length: int, batched: bool) -> None:
        super().__init__()
        self.first = _ConvBlock(of.first, length, batched)
        self.second = _ConvBlock(of.second, length, batched)
        self.shortcut: nn.Module = nn.Identity()
        if isinstance(of.shortcut, nn.Conv1d):
            self.shortcut = convolution(of.shortcut, length, batched)

    def forward(self, x: torch.Tensor, film: torch.Tensor) -> torch.Tensor:
        scale, bias = film.chunk(2, dim=-1)
        result: torch.Tensor = self.second(scale * self.first(x) + bias) + self.shortcut(x)
        return result


class _UnetBody(nn.Module):
    """The U-Net's ``apply_films`` in products, on (Tp, M, D)."""

    def __init__(self, network: Unet, horizon: int, batched: bool) -> None:
        super().__init__()
        lengths = [horizon >> i for i in range(len(network.down))]
        self.widths = [len(block.film.bias) for block in network.residuals]

        def level(blocks: nn.Module, length: int) -> nn.ModuleList:
            return nn.ModuleList(
                _ResidualBlock(block, length, batched)
                for block in blocks.children()
                if isinstance(block, ResidualBlock)
            )

        self.down = nn.ModuleList(
            level(blocks, length) for blocks, length in zip(network.down, lengths, strict=True)
        )
        self.shrink = nn.ModuleList(
            convolution(cast(nn.Conv1d, conv), length, batched)
            for conv, length in zip(network.shrink, lengths[:-1], strict=True)
        )
        self.middle = level(network.middle, lengths[-1])
        self.up = nn.ModuleList(
            level(blocks, length) for blocks, length in zip(network.up, lengths[:0:-1], strict=True)
        )
        self.grow = nn.ModuleList(
            Grow(cast(nn.ConvTranspose1d, conv), length)
            for conv, length in zip(network.grow, lengths[:0:-1], strict=True)
        )
        last, leave = cast(tuple[ConvBlock, nn.Conv1d], tuple(network.leave))
        self.last = _ConvBlock(last, horizon, batched)
        self.leave = convolution(leave, horizon, batched)

    def forward(self, x: torch.Tensor, films: torch.Tensor) -> torch.Tensor:
        film = iter(torch.split(films, self.widths, dim=-1))
        skips = []
        for i, level in enumerate(self.down):
            for block in level.children():
                x = block(x, next(film))
            skips.append(x)
            if i < len(self.shrink):
                x = self.shrink[i](x)
        for block in self.middle:
            x = block(x, next(film))
        for level, grow in zip(self.up, self.grow, strict=True):
            x = torch.cat((x, skips.pop()), dim=-1)
            for block in level.children():
                x = block(x, next(film))
            x = grow(x)
        result: torch.Tensor = self.leave(self.last(x))
        return result


class _MlpBody(nn.Module):
    """The MLP's ``apply_films`` on rows."""

    def __init__(self, network: FilmMlp) -> None:
        super().__init__()
        self.network = network
        self.widths = [layer.out_features for layer in _linears(network)]

    def forward(self, x: torch.Tensor, films: torch.Tensor) -> torch.Tensor:
        network = self.network
        hidden = network.enter(x)
        for block, film in zip(
            network.blocks, torch.split(films, self.widths, dim=-1), strict=True
        ):
            hidden = block(hidden, film)
        result: torch.Tensor = network.leave(hidden)
        return result
