"""What a policy and a decoder must offer. Everything that decodes, serves or trains meets here.

A *policy* turns observations into samples of action chunks. A *decoder* decides, for one session,
how many samples to draw, from where, and which chunk to make of them. Neither knows of sockets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from robot_stack.contract import PolicyContract

__all__ = ["Array", "Decoder", "Draw", "Guide", "Need", "Policy", "Step"]

Array = NDArray[np.float32]


class Need(StrEnum):
    """What a decoder may need of a policy, and a policy may be able to give."""

    SAMPLES = "samples"  # different noise gives different chunks
    NOISE = "noise"  # the initial noise can be chosen; sampling may begin part-way from a chunk
    GRADIENTS = "gradients"  # sampling can be guided through a vector-Jacobian product
    CONTRAST = "contrast"  # a weak checkpoint is hosted beside the strong one


@dataclass(frozen=True, slots=True)
class Guide:
    """Pull the sample towards ``target`` (Tp, D), in action units, with ``weights`` (Tp,) in
    [0, 1]; ``limit`` is beta, the largest guidance weight (RTC, Black et al. 2025, eq. 2)."""

    target: Array
    weights: Array
    limit: float = 5.0


@dataclass(frozen=True, slots=True)
class Draw:
    """What a decoder asks of the policy for one chunk.

    ``noise`` (samples + contrast, Tp, D) is standard normal, from the session's own generator, so
    that a session's chunks don't depend on who else is served. The first ``samples`` rows belong
    to the strong policy, the others to the weak one. With ``start`` (Tp, D, action units) sampling
    begins at ``level`` of the noise schedule (1 is pure noise) from ``start`` noised that far.
    """

    noise: Array
    contrast: int = 0
    start: Array | None = None
    level: float = 1.0
    guide: Guide | None = None

    @property
    def samples(self) -> int:
        return len(self.noise) - self.contrast


@dataclass(frozen=True, slots=True)
class Step:
    """What a decoder knows when a chunk is requested.

    ``priors`` are the chunks that this session executed, newest first, as ``Decoder.choose``
    returned them, shifted so that row i answers the same moment as row i of the new chunk: what
    has passed is cut off, so a prior has at most Tp rows, and always one for the newest
    observation's moment or later. ``priors[0]`` is the chunk that is being executed. ``delay`` is
    how many more of its actions will be consumed before the new chunk arrives: the forecast.
    ``rng`` is the session's. ``previous`` (-1: none) and ``consumed`` are what the client named;
    the session needs them back with the chunk.
    """

    priors: tuple[Array, ...]
    delay: int
    rng: np.random.Generator
    previous: int = -1
    consumed: int = 0


class Policy(Protocol):
    """A model that samples chunks. Tensors live on the policy's device."""

    contract: PolicyContract
    gives: frozenset[Need]

    @property
    def device(self) -> torch.device: ...

    def encode(self, state: torch.Tensor, images: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Observations (B, To, S), action units, and uint8 (B, To, H, W, 3) a camera -> condition
        (B, ...), whose rows may be repeated to draw several samples of one observation."""

    def sample(
        self,
        condition: torch.Tensor,
        noise: torch.Tensor,
        *,
        start: torch.Tensor | None = None,
        level: float = 1.0,
        guide: tuple[torch.Tensor, torch.Tensor, float] | None = None,
    ) -> torch.Tensor:
        """One chunk (M, Tp, D) in action units for each row of condition (M, ...) and noise
        (M, Tp, D). ``start`` (M, Tp, D) and ``level`` as in ``Draw``; ``guide`` is target (M, Tp,
        D), weights (M, Tp) and limit, as in ``Guide``. A policy without ``NOISE`` ignores noise."""

    def normalized(self, actions: Array) -> Array:
        """Actions (..., D) in the units of the policy's noise, for decoders that choose noise."""


@runtime_checkable
class Decoder(Protocol):
    """Makes one chunk of a policy's samples. Keeps no state: what came before is in ``Step``."""

    @property
    def name(self) -> str: ...

    @property
    def needs(self) -> frozenset[Need]: ...

    def plan(self, step: Step, policy: Policy) -> Draw:
        """What to draw."""

    def choose(self, step: Step, strong: Array, weak: Array, contract: PolicyContract) -> Array:
        """The chunk (Tp, D) to execute and to remember, of strong (n, Tp, D) and weak (m, Tp, D)
        samples in action units."""

    def emit(self, step: Step, chosen: Array, contract: PolicyContract) -> Array:
        """The rows (H, D) that go out, from the newest observation's moment on; most return
        ``chosen[contract.first_action:]``."""
