"""What a training run is told: one YAML file, every key checked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from robot_stack.config import Section, parse, read_yaml, within
from robot_stack.contract import CameraInput
from robot_stack.errors import ConfigError

__all__ = [
    "CameraSize",
    "CheckpointConfig",
    "DataConfig",
    "EmaConfig",
    "OptimizerConfig",
    "TrainConfig",
    "ValidationConfig",
    "load_config",
    "plain",
]


@dataclass(frozen=True)
class CameraSize:
    """What the policy sees of one camera; frames of another size are resized."""

    height: int = within(8, 2160, "pixels")
    width: int = within(8, 3840, "pixels")


@dataclass(frozen=True)
class DataConfig:
    """What is read from the episodes.

    ``state`` names features (``<robot>/<joint>``, ``env/<i>``); none means all joints of the rows.
    ``action`` is what was asked or what was sent. ``labels`` leaves out episodes by their label.
    ``rate_hz`` is only for public ALOHA files, which do not say theirs.
    """

    state: tuple[str, ...] = ()
    cameras: dict[str, CameraSize] = field(default_factory=dict)
    action: Literal["action", "action_sent"] = "action"
    labels: Literal["all", "not_failure", "success"] = "not_failure"
    rate_hz: float = within(1, 1000, "Hz", default=50.0)

    @property
    def camera_inputs(self) -> tuple[CameraInput, ...]:
        """The cameras as a contract lists them: alphabetical."""
        return tuple(
            CameraInput(name, size.height, size.width)
            for name, size in sorted(self.cameras.items())
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW under a cosine schedule with linear warm-up.

    ``clip_norm`` bounds the norm of the gradient; ``rates`` gives parameters whose name begins with
    a key a learning rate of their own (ACT trains its image backbone at a tenth).
    """

    learning_rate: float = within(0, 1, default=1e-4)
    betas: tuple[float, ...] = (0.95, 0.999)
    weight_decay: float = within(0, 10, default=1e-6)
    warmup_steps: int = within(0, 10**7, default=500)
    schedule: Literal["cosine", "constant"] = "cosine"
    clip_norm: float | None = within(0, 1e6, default=None)
    rates: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), not {list(self.betas)}")


@dataclass(frozen=True)
class EmaConfig:
    """The average of the weights that is evaluated and kept (Chi et al. 2023): decay
    1 - (1 + t)^-power after t steps, at most ``maximum``."""

    power: float = within(0.01, 1, default=0.75)
    maximum: float = within(0, 1, default=0.9999)


@dataclass(frozen=True)
class ValidationConfig:
    """Whole episodes are held out; the policy's chunks are compared with theirs."""

    share: float = within(0, 0.5, default=0.02)
    every: int = within(1, 10**8, "steps", default=1000)
    windows: int = within(1, 10**6, default=256)


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints at the steps ``at`` and, when above 0, ``every`` so many; the last is always
    kept. An early one serves as the weak model of BID. ``save_s`` is how often the state for
    resuming is saved."""

    at: tuple[int, ...] = ()
    every: int = within(0, 10**8, "steps", default=0)
    save_s: float = within(0, 86400, "s", default=60.0)


@dataclass(frozen=True)
class TrainConfig:
    """A whole training configuration.

    ``first_action`` is which row of a chunk belongs to the newest observation: To - 1 as in
    Diffusion Policy unless given (ACT: 0). ``pad_after`` is how far a chunk may reach past an
    episode's end, whose last action it then repeats: ``execute`` - 1 unless given, as published.
    """

    name: str
    architecture: Section
    steps: int = within(1, 10**8)
    batch: int = within(1, 65536)
    observations: int = within(1, 64)
    horizon: int = within(1, 1024)
    execute: int = within(1, 1024)
    first_action: int | None = within(0, 63, default=None)
    pad_after: int | None = within(0, 1023, default=None)
    task: str = ""
    seed: int = within(0, 2**31, default=0)
    normalizer: Literal["minmax", "gaussian"] = "minmax"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    rollout: Section | None = None
    log_every: int = within(1, 10**6, "steps", default=50)

    def __post_init__(self) -> None:
        if self.first >= self.horizon:
            raise ValueError(
                f"first_action {self.first} must lie in the horizon of {self.horizon} rows"
            )
        if self.execute > self.horizon - self.first:
            raise ValueError(
                f"execute is {self.execute}, but from the newest observation on a chunk has only "
                f"{self.horizon - self.first} rows (horizon - first_action)"
            )
        beyond = [step for step in self.checkpoints.at if not 1 <= step <= self.steps]
        if beyond:
            raise ValueError(f"checkpoints.at names steps outside 1..{self.steps}: {beyond}")

    @property
    def first(self) -> int:
        """``first_action`` as meant."""
        return self.observations - 1 if self.first_action is None else self.first_action

    @property
    def reach(self) -> int:
        """``pad_after`` as meant."""
        return self.execute - 1 if self.pad_after is None else self.pad_after

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, as a run and its checkpoints keep it."""
        values: dict[str, Any] = plain(
            {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        )
        return values


def plain(value: Any) -> Any:
    """Dataclasses, sections and tuples as dicts and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return json.loads(json.dumps(value))


def load_config(path: str | Path, steps: int | None = None) -> TrainConfig:
    """Read and check a training file; ConfigError says file, line, key and what is allowed.

    ``steps`` shortens (or lengthens) the run; ``checkpoints.at`` beyond it fall away.
    """
    section = read_yaml(Path(path), "training file", "configs/train/pusht_state_mlp.yaml")
    config = parse(TrainConfig, section)
    if steps is None:
        return config
    if steps < 1:
        raise ConfigError("a training run has at least one step")
    at = tuple(step for step in config.checkpoints.at if step <= steps)
    return dataclasses.replace(
        config, steps=steps, checkpoints=dataclasses.replace(config.checkpoints, at=at)
    )
