"""An MLP over the flattened chunk, for low-dimensional tasks on small machines."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from policies.models.network import ChunkNetwork, ChunkShape, StepEncoder
from robot_stack.config import within

__all__ = ["FilmMlp", "FilmMlpOptions"]


@dataclass(frozen=True)
class FilmMlpOptions:
    """Residual blocks of ``width``; 512 and 4 make 3.5 M parameters."""

    width: int = within(8, 8192, default=512)
    blocks: int = within(1, 64, default=4)
    condition_width: int = within(8, 8192, default=256)
    step_width: int = within(4, 4096, default=128)

    def make(self, shape: ChunkShape) -> FilmMlp:
        """As ``NetworkOptions.make``."""
        return FilmMlp(self, shape)


class FilmBlock(nn.Module):
    """Adds to its input two linear layers of it, between which the condition scales and shifts."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.film = nn.Linear(condition, 2 * width)
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.activation = nn.Mish()

    def forward(self, x: torch.Tensor, film: torch.Tensor) -> torch.Tensor:
        scale, bias = film.chunk(2, dim=-1)
        hidden = self.norm(self.first(x)) * (1 + scale) + bias
        result: torch.Tensor = x + self.second(self.activation(hidden))
        return result


class FilmMlp(ChunkNetwork):
    """Chunk (M, Tp, D), flattened, through residual blocks that FiLM conditions (Perez et al.
    2018) on the observations and the noise level."""

    def __init__(self, options: FilmMlpOptions, shape: ChunkShape) -> None:
        super().__init__()
        self.step = StepEncoder(options.step_width)
        self.condition = nn.Sequential(
            nn.Linear(
                shape.observations * shape.features + options.step_width, options.condition_width
            ),
            nn.Mish(),
            nn.Linear(options.condition_width, options.condition_width),
            nn.Mish(),
        )
        chunk = shape.horizon * shape.action
        self.enter = nn.Linear(chunk, options.width)
        self.blocks = nn.ModuleList(
            FilmBlock(options.width, options.condition_width) for _ in range(options.blocks)
        )
        self.leave = nn.Sequential(
            nn.LayerNorm(options.width), nn.Mish(), nn.Linear(options.width, chunk)
        )

    def films(self, t: torch.Tensor, condition: torch.Tensor) -> list[torch.Tensor]:
        """What each block needs of t (M,) and the condition (M, To, F): (M, 2 width) a block."""
        joined = self.condition(torch.cat((condition.flatten(1), self.step(t)), dim=-1))
        return [block.get_submodule("film")(joined) for block in self.blocks]

    def apply_films(self, x: torch.Tensor, films: list[torch.Tensor]) -> torch.Tensor:
        """The rest of the network: x (M, Tp, D) -> (M, Tp, D)."""
        hidden = self.enter(x.flatten(1))
        for block, film in zip(self.blocks, films, strict=True):
            hidden = block(hidden, film)
        result: torch.Tensor = self.leave(hidden).unflatten(1, x.shape[1:])
        return result

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return self.apply_films(x, self.films(t, condition))
