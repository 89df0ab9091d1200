"""The diffusion transformer of Diffusion Policy: a causal decoder over the chunk."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from policies.models.network import ChunkNetwork, ChunkShape, SinusoidalEmbedding
from robot_stack.config import within

__all__ = ["Transformer", "TransformerOptions"]


@dataclass(frozen=True)
class TransformerOptions:
    """The defaults are the published low-dimensional configuration (9.0 M parameters on Push-T)."""

    layers: int = within(1, 64, default=8)
    heads: int = within(1, 64, default=4)
    width: int = within(8, 4096, default=256)
    attention_dropout: float = within(0, 0.9, default=0.3)
    embedding_dropout: float = within(0, 0.9, default=0.0)
    causal: bool = True

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of 2 x heads {self.heads}")

    def make(self, shape: ChunkShape) -> Transformer:
        """As ``NetworkOptions.make``."""
        return Transformer(self, shape)


class Transformer(ChunkNetwork):
    """Each action a token that sees itself and the earlier ones; the memory is one token for the
    noise level and one an observation, of which action t sees those up to t (Chi et al. 2023).

    Without ``causal`` every token sees all.
    """

    chunk_mask: torch.Tensor | None
    memory_mask: torch.Tensor | None

    def __init__(self, options: TransformerOptions, shape: ChunkShape) -> None:
        super().__init__()
        width = options.width
        memory = 1 + shape.observations
        self.step = SinusoidalEmbedding(width)
        self.observe = nn.Linear(shape.features, width)
        self.memory_position = nn.Parameter(torch.zeros(memory, width))
        self.enter = nn.Linear(shape.action, width)
        self.position = nn.Parameter(torch.zeros(shape.horizon, width))
        self.dropout = nn.Dropout(options.embedding_dropout)
        self.encoder = nn.Sequential(
            nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width)
        )
        layer = nn.TransformerDecoderLayer(
            width,
            options.heads,
            4 * width,
            options.attention_dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.decoder = nn.TransformerDecoder(layer, options.layers)
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, shape.action))
        chunk_mask = memory_mask = None
        if options.causal:
            action = torch.arange(shape.horizon).unsqueeze(-1)
            chunk_mask = action < torch.arange(shape.horizon)
            memory_mask = action < torch.arange(memory) - 1
        self.register_buffer("chunk_mask", chunk_mask, persistent=False)
        self.register_buffer("memory_mask", memory_mask, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """Normal weights of deviation 0.02 and zero biases, as published."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" not in name and name != "leave.0.weight":
                nn.init.normal_(parameter, std=0.02)

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        step = self.step(t).to(condition.dtype).unsqueeze(1)
        tokens = torch.cat((step, self.observe(condition)), dim=1) + self.memory_position
        memory = self.encoder(self.dropout(tokens))
        hidden = self.decoder(
            self.dropout(self.enter(x) + self.position),
            memory,
            tgt_mask=self.chunk_mask,
            memory_mask=self.memory_mask,
        )
        result: torch.Tensor = self.leave(hidden)
        return result
