"""From camera frames to numbers: ResNet18 with group norm and spatial softmax, on torch alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from robot_stack.config import within
from robot_stack.contract import CameraInput
from robot_stack.errors import PolicyError

__all__ = ["ENCODERS", "Crop", "ImageEncoder", "ResNet18", "ResNet18Options", "SpatialSoftmax"]

GROUP = 16  # channels that share a group's mean and variance
STRIDE = 32  # pixels between two places of the last map


@dataclass(frozen=True)
class ResNet18Options:
    """``crop`` (height, width) is random in training and central afterwards; published are 76 x 76
    of 96 x 96 and 216 x 288 of 240 x 320. ``width`` 64 is ResNet18; less is a smaller one."""

    name: ClassVar[str] = "resnet18"
    crop: tuple[int, ...] | None = None
    keypoints: int = within(1, 1024, default=32)
    features: int = within(1, 4096, default=64)
    width: int = within(GROUP, 1024, default=64)

    def __post_init__(self) -> None:
        if self.crop is not None and (len(self.crop) != 2 or min(self.crop) < 1):
            raise ValueError(f"crop is (height, width) in pixels, not {list(self.crop)}")
        if self.width % GROUP:
            raise ValueError(f"width {self.width} must be a multiple of {GROUP}")


ENCODERS = {"resnet18": ResNet18Options}


class Crop(nn.Module):
    """Images (N, 3, H, W) -> (N, 3, h, w): anywhere in training, each image by itself; from the
    centre in evaluation."""

    def __init__(self, size: tuple[int, int], camera: CameraInput) -> None:
        super().__init__()
        self.height, self.width = size
        if self.height > camera.height or self.width > camera.width:
            raise PolicyError(
                f"crop {self.height} x {self.width} is larger than camera {camera.name} "
                f"({camera.height} x {camera.width}); crop less, or record larger"
            )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        spare = (images.shape[-2] - self.height, images.shape[-1] - self.width)
        if not self.training:
            top, left = spare[0] // 2, spare[1] // 2
            return images[..., top : top + self.height, left : left + self.width]
        count, device = len(images), images.device
        tops = torch.randint(spare[0] + 1, (count, 1), device=device)
        lefts = torch.randint(spare[1] + 1, (count, 1), device=device)
        rows = (tops + torch.arange(self.height, device=device))[:, None, :, None]
        columns = (lefts + torch.arange(self.width, device=device))[:, None, None, :]
        image = torch.arange(count, device=device)[:, None, None, None]
        channel = torch.arange(images.shape[1], device=device)[None, :, None, None]
        return images[image, channel, rows, columns]


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with group norm, and the input (He et al. 2016)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
            nn.GroupNorm(outside // GROUP, outside),
            nn.ReLU(inplace=True),
        )
        self.second = nn.Sequential(
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.GroupNorm(outside // GROUP, outside),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False),
                nn.GroupNorm(outside // GROUP, outside),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


class ResNet18(nn.Sequential):
    """Images (N, 3, H, W) in [-1, 1] -> a map (N, 8 width, H / 32, W / 32). Group norm in place
    of batch norm, which averaged weights would spoil (Chi et al. 2023)."""

    def __init__(self, width: int = 64) -> None:
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        super().__init__(
            nn.Sequential(
                nn.Conv2d(3, width, 7, 2, 3, bias=False),
                nn.GroupNorm(width // GROUP, width),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(3, 2, 1),
            ),
            *(
                nn.Sequential(
                    BasicBlock(widths[i], widths[i + 1], 1 if i == 0 else 2),
                    BasicBlock(widths[i + 1], widths[i + 1], 1),
                )
                for i in range(4)
            ),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class SpatialSoftmax(nn.Module):
    """A map (N, C, h, w) -> where each of K learned features is: (N, K, 2), x and y in [-1, 1]
    (Finn et al. 2016)."""

    def __init__(self, channels: int, keypoints: int) -> None:
        super().__init__()
        self.features = nn.Conv2d(channels, keypoints, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.features(x)
        weights = maps.flatten(2).softmax(dim=-1).unflatten(2, maps.shape[2:])
        x_axis = torch.linspace(-1, 1, maps.shape[3], dtype=maps.dtype, device=maps.device)
        y_axis = torch.linspace(-1, 1, maps.shape[2], dtype=maps.dtype, device=maps.device)
        across = (weights.sum(dim=2) * x_axis).sum(dim=-1)
        down = (weights.sum(dim=3) * y_axis).sum(dim=-1)
        return torch.stack((across, down), dim=-1)


def prepared(images: torch.Tensor) -> torch.Tensor:
    """uint8 (..., H, W, 3) -> float32 (N, 3, H, W) in [-1, 1], leading dimensions flattened."""
    flat = images.flatten(0, -4).movedim(-1, 1)
    return flat.to(torch.float32) / 127.5 - 1


class ImageEncoder(nn.Module):
    """One encoder a camera, none of them shared: frames uint8 (B, To, H, W, 3) a camera ->
    (B, To, cameras x features), in the contract's order."""

    def __init__(self, options: ResNet18Options, cameras: tuple[CameraInput, ...]) -> None:
        super().__init__()
        for camera in cameras:
            height, width = options.crop or (camera.height, camera.width)
            if min(height, width) <= STRIDE:
                raise PolicyError(
                    f"camera {camera.name}: of {height} x {width} pixels a single place is left, "
                    f"and no keypoint can move; each side needs at least {STRIDE + 1}"
                )
        self.cameras = cameras
        self.features = options.features * len(cameras)
        self.encoders = nn.ModuleList(
            nn.Sequential(
                crop_of(options.crop, camera),
                ResNet18(options.width),
                SpatialSoftmax(8 * options.width, options.keypoints),
                nn.Flatten(),
                nn.Linear(2 * options.keypoints, options.features),
            )
            for camera in cameras
        )

    def forward(self, images: Mapping[str, torch.Tensor]) -> torch.Tensor:
        found = []
        for camera, encoder in zip(self.cameras, self.encoders, strict=True):
            frames = frames_of(images, camera)
            found.append(encoder(prepared(frames)).unflatten(0, frames.shape[:2]))
        return torch.cat(found, dim=-1)


def crop_of(crop: tuple[int, ...] | None, camera: CameraInput) -> nn.Module:
    """The crop of a camera, or none."""
    return nn.Identity() if crop is None else Crop((crop[0], crop[1]), camera)


def frames_of(images: Mapping[str, torch.Tensor], camera: CameraInput) -> torch.Tensor:
    """The frames of ``camera``; PolicyError where they are missing or of another size."""
    frames = images.get(camera.name)
    shape = (camera.height, camera.width, 3)
    if frames is None or frames.shape[-3:] != shape or frames.dtype != torch.uint8:
        got = "missing" if frames is None else f"{frames.dtype} {tuple(frames.shape)}"
        raise PolicyError(
            f"images of camera {camera.name}: needed is uint8 (B, To, *{shape}), given is {got}",
            "bad_observation",
        )
    return frames
