"""Station files: YAML to frozen dataclasses; errors name the file, the line and the key."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from robot_stack.errors import ConfigError
from robot_stack.spec import CameraSpec

__all__ = [
    "CameraConfig",
    "GroupConfig",
    "PedalConfig",
    "RecordingConfig",
    "RobotConfig",
    "Section",
    "Station",
    "StopDeviceConfig",
    "TeleopConfig",
    "WorkspaceConfig",
    "WorldSection",
    "load_station",
    "parse",
    "read_yaml",
    "within",
]

T = TypeVar("T")


def within(lower: float, upper: float, unit: str = "", **kwargs: Any) -> Any:
    """A dataclass field whose number must lie in [lower, upper]."""
    return field(metadata={"range": (lower, upper), "unit": unit}, **kwargs)


class Section(Mapping[str, Any]):
    """A YAML mapping that remembers where it and each of its keys stand."""

    def __init__(self, values: dict[str, Any], file: str, line: int, lines: dict[str, int]) -> None:
        self._values = values
        self.file = file
        self.line = line
        self.lines = lines

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)


@dataclass(frozen=True)
class WorkspaceConfig:
    """Where a robot's fingertips may be: a box in its base frame, metres; null leaves a side open.

    Motion slows within ``slow_m`` of a wall and ends at it.
    """

    lower: tuple[float | None, ...]
    upper: tuple[float | None, ...]
    slow_m: float = within(0.001, 1.0, "m", default=0.05)

    def __post_init__(self) -> None:
        if len(self.lower) != 3 or len(self.upper) != 3:
            raise ValueError("lower and upper are each three numbers (x, y, z), null for open")
        for low, high in zip(self.lower, self.upper, strict=True):
            if low is not None and high is not None and not low < high:
                raise ValueError(f"lower {low} must be below upper {high}")


@dataclass(frozen=True)
class RobotConfig:
    """One robot (an arm with its gripper, leader or follower): one arm process."""

    driver: str
    rate_hz: float | None = within(10, 2000, "Hz", default=None)
    priority: int = within(1, 98, "", default=50)
    cpu: int | None = within(0, 1023, "", default=None)
    falls: bool = True
    workspace: WorkspaceConfig | None = None
    options: Section = field(default_factory=lambda: Section({}, "", 0, {}))
    name: str = ""


@dataclass(frozen=True)
class GroupConfig:
    """Robots that share a lease, a stop and a fault; commands list their joints in this order."""

    robots: tuple[str, ...]
    stale_s: float = within(0.02, 2.0, "s", default=0.1)
    peer_timeout_s: float = within(0.05, 5.0, "s", default=0.3)
    guard: str | None = None
    name: str = ""


@dataclass(frozen=True)
class CameraConfig:
    """One camera: one camera process."""

    driver: str
    width: int = within(16, 8192, "pixels", default=640)
    height: int = within(16, 8192, "pixels", default=480)
    fps: float = within(0.1, 1000, "Hz", default=30.0)
    depth: bool = False
    options: Section = field(default_factory=lambda: Section({}, "", 0, {}))
    name: str = ""

    @property
    def spec(self) -> CameraSpec:
        return CameraSpec(self.name, self.width, self.height, self.fps, self.depth)


@dataclass(frozen=True)
class TeleopConfig:
    """What an operator moves (``driver`` and its options) and the group that follows."""

    driver: str
    group: str
    options: Section = field(default_factory=lambda: Section({}, "", 0, {}))


@dataclass(frozen=True)
class PedalConfig:
    """A foot pedal that drives the recorder: what each of its keys does (``KEY_B: toggle``)."""

    device: str
    keys: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordingConfig:
    """Where and how episodes are kept.

    ``flight_cameras``: whether the last half minute before a fault is dumped with its pictures.
    They show whoever was there, recorded or not: false where the public drives.
    """

    directory: str = "episodes"
    group: str = ""
    encoding: Literal["jpeg", "raw"] = "jpeg"
    jpeg_quality: int = within(10, 100, "", default=90)
    free_space_floor_gb: float = within(0.0, 1e5, "GB", default=2.0)
    max_seconds: float = within(1.0, 86400.0, "s", default=600.0)
    flight_cameras: bool = True
    pedal: PedalConfig | None = None


@dataclass(frozen=True)
class StopDeviceConfig:
    """An emergency-stop button or pedal; ``required`` makes its absence a fault."""

    device: str
    keys: tuple[str, ...] = ()
    category: int = within(1, 2, "", default=2)
    required: bool = True
    name: str = ""


@dataclass(frozen=True)
class WorldSection:
    """The simulated world behind a virtual station."""

    scene: str = "aloha_transfer_cube"
    seed: int = within(0, 2**31, "", default=0)
    usb_latency_ms: float = within(0.0, 16.0, "ms", default=1.0)


@dataclass(frozen=True)
class Station:
    """A whole station file."""

    station: str
    robots: dict[str, RobotConfig]
    groups: dict[str, GroupConfig]
    schema: Literal[1] = 1
    rate_hz: float = within(1, 1000, "Hz", default=50.0)
    task: str = ""
    cameras: dict[str, CameraConfig] = field(default_factory=dict)
    teleop: TeleopConfig | None = None
    other_teleop: dict[str, TeleopConfig] = field(default_factory=dict)
    recording: RecordingConfig = field(default_factory=RecordingConfig)
    stop_devices: dict[str, StopDeviceConfig] = field(default_factory=dict)
    world: WorldSection | None = None
    path: str = ""

    def group_of(self, robot: str) -> GroupConfig:
        """The group that a robot belongs to."""
        return next(group for group in self.groups.values() if robot in group.robots)


def _fail(file: str, line: int, key: str, message: str) -> ConfigError:
    where = f"{file}:{line}: " if file else ""
    return ConfigError(f"{where}{key}: {message}")


class _Loader(yaml.SafeLoader):
    pass


def _plain(node: yaml.Node, file: str, loader: _Loader) -> Any:
    if isinstance(node, yaml.MappingNode):
        own: dict[str, int] = {}
        for key_node, _ in node.value:  # before merging: what `<<` brings may be overridden
            line = key_node.start_mark.line + 1
            if key_node.value in own:
                first = own[key_node.value]
                raise _fail(file, line, key_node.value, f"given twice (first on line {first})")
            own[key_node.value] = line
        loader.flatten_mapping(node)
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = str(loader.construct_object(key_node, deep=True))
            line = key_node.start_mark.line + 1
            values[key] = _plain(value_node, file, loader)
            lines[key] = line
        return Section(values, file, node.start_mark.line + 1, lines)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, file, loader) for item in node.value]
    return loader.construct_object(node, deep=True)


def read_yaml(
    path: Path, what: str = "station file", example: str = "configs/aloha_virtual.yaml"
) -> Section:
    """The mapping in a YAML file; ConfigError when it can't be read, is none, or has a key twice.

    ``what`` and ``example`` are for the messages.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(
            f"cannot read {what} {path}: {reason}; give the path of a YAML file, "
            f"for example {example}"
        ) from error
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(f"{path}: a {what} is a mapping of keys, this file is not one")
        return typing.cast(Section, _plain(node, str(path), loader))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    finally:
        loader.dispose()


def parse(kind: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build dataclass ``kind`` from a mapping, refusing unknown keys, wrong types and ranges.

    ``values`` may be a ``Section`` (errors then name file and line) or a plain mapping; ``where``
    prefixes key names in messages.
    """
    section = values if isinstance(values, Section) else Section(dict(values), "", 0, {})
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, kind)) if f.init}
    hints = get_type_hints(kind)
    prefix = f"{where}." if where else ""
    for key in section:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            allowed = ", ".join(sorted(fields))
            raise _fail(
                section.file,
                section.lines.get(key, section.line),
                prefix + key,
                f"unknown key{hint} (allowed: {allowed})",
            )
    arguments: dict[str, Any] = {}
    for name, spec in fields.items():
        if name not in section:
            if spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
                raise _fail(section.file, section.line, prefix + name, "missing, and required")
            continue
        line = section.lines.get(name, section.line)
        value = _convert(hints[name], section[name], section.file, line, prefix + name)
        _check_range(value, spec, section.file, line, prefix + name)
        arguments[name] = value
    try:
        return kind(**arguments)
    except ValueError as error:
        raise _fail(section.file, section.line, where or kind.__name__, str(error)) from error


def _check_range(value: Any, spec: dataclasses.Field[Any], file: str, line: int, key: str) -> None:
    if "range" not in spec.metadata or not isinstance(value, int | float):
        return
    lower, upper = spec.metadata["range"]
    if not lower <= value <= upper:
        unit = f" {spec.metadata['unit']}" if spec.metadata.get("unit") else ""
        raise _fail(file, line, key, f"{value} is out of range, allowed {lower}..{upper}{unit}")


def _convert(kind: Any, value: Any, file: str, line: int, key: str) -> Any:
    """``value`` as type ``kind``; ConfigError with place and expectation if it is not one."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        options = [option for option in get_args(kind) if option is not type(None)]
        return None if value is None else _convert(options[0], value, file, line, key)
    if origin is Literal:
        if value not in get_args(kind):
            allowed = ", ".join(map(str, get_args(kind)))
            raise _fail(file, line, key, f"{value!r} is not one of {allowed}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _fail(file, line, key, f"expected a list, got {value!r}")
        item = get_args(kind)[0]
        return tuple(_convert(item, v, file, line, f"{key}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _fail(file, line, key, f"expected a mapping, got {value!r}")
        item = get_args(kind)[1]
        lines = value.lines if isinstance(value, Section) else {}
        return {
            k: _convert(item, v, file, lines.get(k, line), f"{key}.{k}") for k, v in value.items()
        }
    if kind is Section:
        if not isinstance(value, Mapping):
            raise _fail(file, line, key, f"expected a mapping, got {value!r}")
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, Mapping):
            raise _fail(file, line, key, f"expected a mapping, got {value!r}")
        return parse(kind, value, key)
    return _scalar(kind, value, file, line, key)


def _scalar(kind: Any, value: Any, file: str, line: int, key: str) -> Any:
    if kind is Any:
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise _fail(file, line, key, f"{value} is not a finite number")
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if (
        isinstance(kind, type)
        and isinstance(value, kind)
        and not (kind is int and isinstance(value, bool))
    ):
        return value
    names = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}
    raise _fail(file, line, key, f"expected {names.get(kind, kind)}, got {value!r}")


def _named(mapping: dict[str, Any]) -> dict[str, Any]:
    return {key: dataclasses.replace(value, name=key) for key, value in mapping.items()}


def load_station(path: str | Path) -> Station:
    """Read and check a station file; ConfigError says file, line, key and what is allowed."""
    path = Path(path)
    section = read_yaml(path)
    station = parse(Station, section)
    file = str(path)

    def line(key: str) -> int:
        return section.lines.get(key, 1)

    if not station.station or not station.station.replace("_", "a").replace("-", "a").isalnum():
        raise _fail(
            file, line("station"), "station", "a name of letters, digits, '-' and '_' is needed"
        )
    if not station.robots and not station.cameras:
        raise _fail(file, line("robots"), "robots", "a station needs a robot or a camera")
    seen: dict[str, str] = {}
    for name, group in station.groups.items():
        for robot in group.robots:
            if robot not in station.robots:
                known = ", ".join(station.robots)
                raise _fail(
                    file, line("groups"), f"groups.{name}", f"no robot {robot!r} (robots: {known})"
                )
            if robot in seen:
                raise _fail(
                    file,
                    line("groups"),
                    f"groups.{name}",
                    f"robot {robot!r} is already in group {seen[robot]!r}",
                )
            seen[robot] = name
    for robot in station.robots:
        if robot not in seen:
            raise _fail(
                file,
                line("groups"),
                "groups",
                f"robot {robot!r} is in no group; every robot needs one",
            )
    others = (
        ("other_teleop", f"other_teleop.{name}", device.group)
        for name, device in station.other_teleop.items()
    )
    for key, where, group_name in (
        ("teleop", "teleop", station.teleop.group if station.teleop else None),
        ("recording", "recording", station.recording.group or None),
        *others,
    ):
        if group_name is not None and group_name not in station.groups:
            known = ", ".join(station.groups)
            raise _fail(
                file, line(key), f"{where}.group", f"no group {group_name!r} (groups: {known})"
            )
    return dataclasses.replace(
        station,
        path=str(path.resolve()),
        robots=_named(station.robots),
        groups=_named(station.groups),
        cameras=_named(station.cameras),
        stop_devices=_named(station.stop_devices),
    )
