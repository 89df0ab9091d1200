"""ACT: a transformer that answers one chunk, trained as a conditional variational autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from policies.batch import Batch
from policies.interfaces import Need
from policies.models.positions import image_positions, sequence_positions
from policies.models.vision import GROUP, STRIDE, ResNet18, crop_of, frames_of, prepared
from policies.normalizer import Normalizer
from policies.trainable import TrainablePolicy
from robot_stack.config import parse, within
from robot_stack.contract import CameraInput, PolicyContract
from robot_stack.errors import PolicyError

__all__ = ["ActOptions", "ActPolicy"]


@dataclass(frozen=True)
class ActEncoderOptions:
    """ResNet18 (``width`` 64) whose map's places are tokens; ``crop`` as for diffusion."""

    crop: tuple[int, ...] | None = None
    width: int = within(GROUP, 1024, default=64)

    def __post_init__(self) -> None:
        if self.crop is not None and (len(self.crop) != 2 or min(self.crop) < 1):
            raise ValueError(f"crop is (height, width) in pixels, not {list(self.crop)}")
        if self.width % GROUP:
            raise ValueError(f"width {self.width} must be a multiple of {GROUP}")


@dataclass(frozen=True)
class ActOptions:
    """``{"policy": "act", ...}``. The defaults are those of Zhao et al. 2023; of their seven
    decoder layers their code used the output of the first alone, hence one."""

    width: int = within(8, 4096, default=512)
    feed_forward: int = within(8, 16384, default=3200)
    heads: int = within(1, 64, default=8)
    encoder_layers: int = within(1, 64, default=4)
    decoder_layers: int = within(1, 64, default=1)
    latent: int = within(1, 1024, default=32)
    kl_weight: float = within(0, 1e6, default=10.0)
    dropout: float = within(0, 0.9, default=0.1)
    encoder: ActEncoderOptions = field(default_factory=ActEncoderOptions)

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 4:
            raise ValueError(
                f"width {self.width} must be a multiple of heads {self.heads} and of 4"
            )


class ActPolicy(TrainablePolicy):
    """Action Chunking with Transformers (Zhao et al. 2023).

    In training an encoder reads the state and the chunk and answers a latent style; the policy
    learns the chunk from style, state and images. In use the style is 0, so that one observation
    has one chunk: there are no samples to draw, no noise to choose, no sampling to guide.
    """

    gives: frozenset[Need] = frozenset()
    style_positions: torch.Tensor

    def __init__(
        self, architecture: Mapping[str, Any], contract: PolicyContract, normalizer: Normalizer
    ) -> None:
        values = {key: value for key, value in architecture.items() if key != "policy"}
        if "encoder" in values and not contract.cameras:
            raise PolicyError(
                "the architecture has an encoder, the contract no cameras; take one of them out"
            )
        super().__init__(architecture, contract, normalizer)
        self.options = options = parse(ActOptions, values, "architecture")
        state, action = contract.observations * len(contract.state), len(contract.action)
        width = options.width

        self.style_token = nn.Parameter(torch.randn(width) * 0.02)
        self.style_state = nn.Linear(state, width)
        self.style_action = nn.Linear(action, width)
        self.style_encoder = self._encoder()
        self.style_leave = nn.Linear(width, 2 * options.latent)
        positions = sequence_positions(2 + contract.horizon, width)
        self.register_buffer("style_positions", positions, persistent=False)

        self.enter_style = nn.Linear(options.latent, width)
        self.enter_state = nn.Linear(state, width)
        self.token_positions = nn.Parameter(torch.randn(2, width) * 0.02)
        self.cameras = nn.ModuleList(
            CameraTokens(camera, contract.observations, options) for camera in contract.cameras
        )
        self.encoder = self._encoder()
        layer = nn.TransformerDecoderLayer(
            width, options.heads, options.feed_forward, options.dropout, batch_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, options.decoder_layers, nn.LayerNorm(width))
        self.query = nn.Parameter(torch.randn(contract.horizon, width) * 0.02)
        self.leave = nn.Linear(width, action)

    def _encoder(self) -> nn.TransformerEncoder:
        options = self.options
        layer = nn.TransformerEncoderLayer(
            options.width, options.heads, options.feed_forward, options.dropout, batch_first=True
        )
        return nn.TransformerEncoder(layer, options.encoder_layers, enable_nested_tensor=False)

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean absolute error of the actions that are not padding, and the weighted divergence of
        the style from a standard normal."""
        state = self.normalize_state(batch.state).flatten(1)
        action = self.normalize_action(batch.action)
        mean, log_variance = self._style(state, action, batch.mask)
        style = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        chunk = self._decode(self._memory(state, style, batch.images))
        weights = batch.mask.unsqueeze(-1).to(chunk.dtype)
        counted = (weights.sum() * chunk.shape[-1]).clamp(1)
        error = ((chunk - action).abs() * weights).sum() / counted
        divergence = (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=-1).mean() / 2
        total: torch.Tensor = error + self.options.kl_weight * divergence
        return total

    @torch.no_grad()
    def encode(self, state: torch.Tensor, images: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """As ``Policy.encode``: (B, tokens, width)."""
        normalized = self.normalize_state(state).flatten(1)
        style = normalized.new_zeros(len(normalized), self.options.latent)
        return self._memory(normalized, style, images)

    @torch.no_grad()
    def sample(
        self,
        condition: torch.Tensor,
        noise: torch.Tensor,
        *,
        start: torch.Tensor | None = None,
        level: float = 1.0,
        guide: tuple[torch.Tensor, torch.Tensor, float] | None = None,
    ) -> torch.Tensor:
        """As ``Policy.sample``, without regard to ``noise``. PolicyError for a start or a guide."""
        if start is not None or guide is not None:
            raise PolicyError(
                "an ACT policy answers one chunk: it cannot start from another or be guided; use "
                "a decoder that needs neither (receding_horizon, temporal_ensemble, ema)"
            )
        return self.restore_action(self._decode(condition))

    def _style(
        self, state: torch.Tensor, action: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and logarithm of the variance (B, latent) of the style of a chunk."""
        tokens = torch.cat(
            (
                self.style_token.expand(len(state), 1, -1),
                self.style_state(state).unsqueeze(1),
                self.style_action(action),
            ),
            dim=1,
        )
        padding = torch.cat((torch.zeros_like(mask[:, :2]), ~mask), dim=1)
        read = self.style_encoder(tokens + self.style_positions, src_key_padding_mask=padding)
        mean, log_variance = self.style_leave(read[:, 0]).chunk(2, dim=-1)
        return mean, log_variance

    def _memory(
        self, state: torch.Tensor, style: torch.Tensor, images: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """What the decoder reads: (B, tokens, width)."""
        first = torch.stack((self.enter_style(style), self.enter_state(state)), dim=1)
        parts = [first + self.token_positions, *(camera(images) for camera in self.cameras)]
        memory: torch.Tensor = self.encoder(torch.cat(parts, dim=1))
        return memory

    def _decode(self, memory: torch.Tensor) -> torch.Tensor:
        """The chunk (B, Tp, D) in the network's range."""
        result: torch.Tensor = self.leave(
            self.decoder(self.query.expand(len(memory), -1, -1), memory)
        )
        return result


class CameraTokens(nn.Module):
    """Frames of one camera, uint8 (B, To, H, W, 3) -> one token a place of the map and frame:
    (B, To h w, width)."""

    positions: torch.Tensor

    def __init__(self, camera: CameraInput, observations: int, options: ActOptions) -> None:
        super().__init__()
        self.camera = camera
        crop = options.encoder.crop
        height, width = crop or (camera.height, camera.width)
        self.network = nn.Sequential(
            crop_of(crop, camera),
            ResNet18(options.encoder.width),
            nn.Conv2d(8 * options.encoder.width, options.width, 1),
            nn.Flatten(2),
        )
        places = image_positions(-(-height // STRIDE), -(-width // STRIDE), options.width)
        self.register_buffer("positions", places, persistent=False)
        self.time = nn.Parameter(torch.randn(observations, 1, options.width) * 0.02)

    def forward(self, images: Mapping[str, torch.Tensor]) -> torch.Tensor:
        frames = frames_of(images, self.camera)
        tokens = self.network(prepared(frames)).transpose(1, 2).unflatten(0, frames.shape[:2])
        result: torch.Tensor = (tokens + self.positions + self.time).flatten(1, 2)
        return result
