"""One decoding step for several sessions: one encode, draws of a kind in one batch.

Each session's noise comes from its own generator, so its chunks do not depend on who else is
served (beyond rounding).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from policies.decoding.session import Session
from policies.hosted import Hosted
from policies.interfaces import Array, Draw, Policy, Step

__all__ = ["Request", "decode"]


@dataclass(frozen=True, slots=True)
class Request:
    """What ``session`` asks: its begun ``step``, state (To, S) in raw units, and uint8 frames
    (To, H, W, 3) a camera."""

    session: Session
    step: Step
    state: Array
    images: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)


def decode(hosted: Hosted, requests: Sequence[Request]) -> list[tuple[int, NDArray[np.float64]]]:
    """The chunk id and rows (H, D) of each request. A session appears once at most."""
    if not requests:
        return []
    draws = [request.session.decoder.plan(request.step, hosted.strong) for request in requests]
    weak = [draw.noise[:0] for draw in draws]
    if hosted.weak is None or not any(draw.contrast for draw in draws):
        strong = _sample(hosted.strong, requests, draws, weak=False)
    elif hosted.together:
        with ThreadPoolExecutor(1) as thread:
            beside = thread.submit(_sample, hosted.weak, requests, draws, weak=True)
            strong = _sample(hosted.strong, requests, draws, weak=False)
            weak = beside.result()
    else:
        strong = _sample(hosted.strong, requests, draws, weak=False)
        weak = _sample(hosted.weak, requests, draws, weak=True)
    return [
        request.session.finish(request.step, *samples)
        for request, *samples in zip(requests, strong, weak, strict=True)
    ]


@torch.no_grad()
def _sample(
    policy: Policy, requests: Sequence[Request], draws: Sequence[Draw], *, weak: bool
) -> list[Array]:
    """The samples (n, Tp, D) of each draw's part for this policy; (0, Tp, D) where it has none."""
    parts = [draw.noise[draw.samples :] if weak else draw.noise[: draw.samples] for draw in draws]
    groups: dict[Hashable, list[int]] = {}
    for index, (draw, noise) in enumerate(zip(draws, parts, strict=True)):
        if len(noise):
            groups.setdefault(_kind(draw), []).append(index)
    samples = list(parts)
    for indices in groups.values():
        found = _sample_alike(
            policy,
            [requests[i] for i in indices],
            [draws[i] for i in indices],
            [parts[i] for i in indices],
        )
        for index, chunks in zip(indices, found, strict=True):
            samples[index] = chunks
    return samples


def _kind(draw: Draw) -> Hashable:
    """Draws that one call of ``Policy.sample`` can answer are of one kind."""
    level = None if draw.start is None else draw.level
    return level, None if draw.guide is None else draw.guide.limit


def _sample_alike(
    policy: Policy, requests: Sequence[Request], draws: Sequence[Draw], parts: Sequence[Array]
) -> list[Array]:
    device, counts = policy.device, [len(noise) for noise in parts]

    def repeated(rows: torch.Tensor) -> torch.Tensor:
        if max(counts) == 1:
            return rows
        return rows.repeat_interleave(torch.tensor(counts, device=device), dim=0)

    def expanded(values: Sequence[Array]) -> torch.Tensor:
        return repeated(_batched(values, device))

    condition = policy.encode(
        _batched([request.state for request in requests], device),
        {
            camera.name: _batched([request.images[camera.name] for request in requests], device)
            for camera in policy.contract.cameras
        },
    )
    starts = [draw.start for draw in draws if draw.start is not None]
    guides = [draw.guide for draw in draws if draw.guide is not None]
    chunks = policy.sample(
        repeated(condition),
        _on(device, parts[0] if len(parts) == 1 else np.concatenate(parts)),
        start=expanded(starts) if starts else None,
        level=draws[0].level,
        guide=(
            expanded([guide.target for guide in guides]),
            expanded([guide.weights for guide in guides]),
            guides[0].limit,
        )
        if guides
        else None,
    )
    found: Array = chunks.numpy(force=True)
    return [found] if len(counts) == 1 else np.split(found, np.cumsum(counts)[:-1])


def _batched(values: Sequence[NDArray[Any]], device: torch.device) -> torch.Tensor:
    """Their batch; a single one is not copied: 3.7 MB of frames would take longer than a forward
    pass of a small policy. Policies do not write into what they are given."""
    return _on(device, np.stack(values) if len(values) > 1 else values[0][None])


def _on(device: torch.device, array: NDArray[Any]) -> torch.Tensor:
    """Floats as float32. On a CPU the array's own memory. Operators that do nothing are left out:
    after a pause each takes some 20 us until its code is back in the cache."""
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.to(device)
