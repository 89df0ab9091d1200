"""Station files: what is right is read, and what is wrong is told with file, line and key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from robot_stack.config import load_station
from robot_stack.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"

GOOD = """\
station: lab
robots:
  left: {driver: aloha, rate_hz: 200, options: {port: /dev/ttyUSB0}}
  right: {driver: aloha}
groups:
  arms: {robots: [left, right], stale_s: 0.2}
cameras:
  top: {driver: opencv, width: 320, height: 240, fps: 30}
recording: {group: arms}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "station.yaml"
    path.write_text(text)
    return path


def test_a_good_file_is_read_with_names_and_defaults(tmp_path):
    station = load_station(write(tmp_path, GOOD))
    assert station.robots["left"].rate_hz == 200.0
    assert station.robots["left"].name == "left"
    assert station.robots["right"].rate_hz is None
    assert station.groups["arms"].robots == ("left", "right")
    assert station.group_of("right").name == "arms"
    assert station.cameras["top"].spec.width == 320
    assert station.rate_hz == 50.0
    assert station.robots["left"].options["port"] == "/dev/ttyUSB0"


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        (
            "rate_hz: 200",
            "rate_h: 200",
            3,
            "robots.left.rate_h: unknown key; did you mean 'rate_hz'",
        ),
        ("rate_hz: 200", "rate_hz: 20000", 3, "20000.0 is out of range, allowed 10..2000 Hz"),
        ("rate_hz: 200", "rate_hz: fast", 3, "expected a number, got 'fast'"),
        ("rate_hz: 200", "rate_hz: true", 3, "expected a number, got True"),
        ("rate_hz: 200", "rate_hz: .nan", 3, "nan is not a finite number"),
        ("[left, right]", "[left, rihgt]", 5, "no robot 'rihgt' (robots: left, right)"),
        ("[left, right]", "[left]", 5, "robot 'right' is in no group"),
        ("[left, right]", "left", 6, "groups.arms.robots: expected a list"),
        ("stale_s: 0.2", "stale_s: 0", 6, "0.0 is out of range, allowed 0.02..2.0 s"),
        ("group: arms", "group: legs", 9, "no group 'legs' (groups: arms)"),
        ("group: arms", "encoding: png", 9, "'png' is not one of jpeg, raw"),
        ("driver: opencv, ", "", 8, "cameras.top.driver: missing, and required"),
        ("station: lab", "station: a/b", 1, "letters, digits"),
        ("width: 320", "width: 320.5", 8, "expected a whole number"),
        ("  right: {driver: aloha}", "  left: {driver: aloha}", 4, "given twice (first on line 3)"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path, old, new, line, words):
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_station(path)
    assert f"{path}:{line}: " in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "!!python/object/apply:os.getpid []"])
def test_what_is_no_station_file_is_a_config_error(tmp_path, text):
    with pytest.raises(ConfigError):
        load_station(write(tmp_path, text))


def test_a_missing_file_says_what_to_give():
    with pytest.raises(ConfigError, match=re.escape("configs/aloha_virtual.yaml")):
        load_station("no/such/file.yaml")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_station_loads(path):
    assert load_station(path).station == yaml.safe_load(path.read_text())["station"]


def test_another_device_may_teleoperate(tmp_path):
    text = GOOD + (
        "teleop: {driver: spacemouse, group: arms}\n"
        "other_teleop:\n"
        "  pad: {driver: gamepad, group: arms, options: {robot: left}}\n"
    )
    other = load_station(write(tmp_path, text)).other_teleop["pad"]
    assert (other.driver, other.group, other.options["robot"]) == ("gamepad", "arms", "left")
    with pytest.raises(ConfigError, match=r"other_teleop\.pad\.group: no group 'legs'"):
        load_station(write(tmp_path, text.replace("gamepad, group: arms", "gamepad, group: legs")))
