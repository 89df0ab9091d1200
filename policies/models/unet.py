"""The temporal U-Net of Diffusion Policy, conditioned by FiLM on observations and noise level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from policies.models.network import ChunkNetwork, ChunkShape, StepEncoder
from robot_stack.config import within
from robot_stack.errors import PolicyError

__all__ = ["Unet", "UnetOptions"]


@dataclass(frozen=True)
class UnetOptions:
    """The defaults are the published low-dimensional configuration (65.8 M parameters on Push-T);
    ``down_dims`` [512, 1024, 2048] with ``step_width`` 128 is its image one, [64, 128, 256] one
    that a CPU trains in hours."""

    down_dims: tuple[int, ...] = (256, 512, 1024)
    kernel: int = within(1, 15, default=5)
    groups: int = within(1, 64, default=8)
    step_width: int = within(4, 4096, default=256)

    def __post_init__(self) -> None:
        if not 1 <= len(self.down_dims) <= 6:
            raise ValueError(f"down_dims has {len(self.down_dims)} levels, allowed 1..6")
        for width in self.down_dims:
            if width % self.groups or not 0 < width <= 8192:
                raise ValueError(
                    f"down_dims {width} must be a multiple of groups {self.groups}, up to 8192"
                )
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} must be odd, so that a chunk keeps its length")

    def make(self, shape: ChunkShape) -> Unet:
        """As ``NetworkOptions.make``."""
        return Unet(self, shape)


class ConvBlock(nn.Sequential):
    """Convolution over time, group norm, Mish: (M, in, T) -> (M, out, T)."""

    def __init__(self, inside: int, outside: int, options: UnetOptions) -> None:
        super().__init__(
            nn.Conv1d(inside, outside, options.kernel, padding=options.kernel // 2),
            nn.GroupNorm(options.groups, outside),
            nn.Mish(),
        )


class ResidualBlock(nn.Module):
    """Two ``ConvBlock``s, between which a film (M, 2 out) scales and shifts; and the input."""

    def __init__(self, inside: int, outside: int, condition: int, options: UnetOptions) -> None:
        super().__init__()
        self.first = ConvBlock(inside, outside, options)
        self.film = nn.Linear(condition, 2 * outside)
        self.second = ConvBlock(outside, outside, options)
        self.shortcut = nn.Conv1d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: torch.Tensor, film: torch.Tensor) -> torch.Tensor:
        scale, bias = film.unsqueeze(-1).chunk(2, dim=1)
        hidden = self.second(scale * self.first(x) + bias)
        result: torch.Tensor = hidden + self.shortcut(x)
        return result


class Unet(ChunkNetwork):
    """ConditionalUnet1D (Chi et al. 2023, appendix): two residual blocks a level, a stride of two
    between levels, scale and bias from the observations and the step's embedding.

    As published, the skip of the first level is computed and not used, and time is halved between
    levels, so Tp must be a multiple of 2^(levels - 1).
    """

    def __init__(self, options: UnetOptions, shape: ChunkShape) -> None:
        super().__init__()
        dims = options.down_dims
        stride = 2 ** (len(dims) - 1)
        if shape.horizon % stride:
            raise PolicyError(
                f"a U-Net of {len(dims)} levels maps a horizon that is a multiple of {stride}, not "
                f"{shape.horizon}; choose another horizon, or fewer down_dims"
            )
        condition = options.step_width + shape.observations * shape.features

        def residual(inside: int, outside: int) -> ResidualBlock:
            return ResidualBlock(inside, outside, condition, options)

        self.step = StepEncoder(options.step_width)
        self.activation = nn.Mish()
        pairs = list(zip((shape.action, *dims[:-1]), dims, strict=True))
        self.down = nn.ModuleList(
            nn.ModuleList([residual(inside, outside), residual(outside, outside)])
            for inside, outside in pairs
        )
        self.shrink = nn.ModuleList(nn.Conv1d(n, n, 3, stride=2, padding=1) for n in dims[:-1])
        self.middle = nn.ModuleList(residual(dims[-1], dims[-1]) for _ in range(2))
        self.up = nn.ModuleList(
            nn.ModuleList([residual(2 * outside, inside), residual(inside, inside)])
            for inside, outside in reversed(pairs[1:])
        )
        self.grow = nn.ModuleList(
            nn.ConvTranspose1d(n, n, 4, stride=2, padding=1) for n in reversed(dims[:-1])
        )
        self.leave = nn.Sequential(
            ConvBlock(dims[0], dims[0], options), nn.Conv1d(dims[0], shape.action, 1)
        )

    @property
    def residuals(self) -> list[ResidualBlock]:
        """The blocks in the order in which they run."""
        return [block for block in self.modules() if isinstance(block, ResidualBlock)]

    def films(self, t: torch.Tensor, condition: torch.Tensor) -> list[torch.Tensor]:
        """What each block needs of t (M,) and the condition (M, To, F): (M, 2 width) a block."""
        joined = self.activation(torch.cat((self.step(t), condition.flatten(1)), dim=-1))
        return [block.film(joined) for block in self.residuals]

    def apply_films(self, x: torch.Tensor, films: Sequence[torch.Tensor]) -> torch.Tensor:
        """The rest of the network: x (M, Tp, D) -> (M, Tp, D)."""
        film = iter(films)
        hidden = x.transpose(1, 2)
        skips = []
        for i, level in enumerate(self.down):
            for block in level.children():
                hidden = block(hidden, next(film))
            skips.append(hidden)
            if i < len(self.shrink):
                hidden = self.shrink[i](hidden)
        for block in self.middle:
            hidden = block(hidden, next(film))
        for level, grow in zip(self.up, self.grow, strict=True):
            hidden = torch.cat((hidden, skips.pop()), dim=1)
            for block in level.children():
                hidden = block(hidden, next(film))
            hidden = grow(hidden)
        result: torch.Tensor = self.leave(hidden).transpose(1, 2)
        return result

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return self.apply_films(x, self.films(t, condition))
