"""Every teleoperator of the registry keeps to the interface; new rows are covered by themselves."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest
import yaml

from robot_stack import registry
from robot_stack.config import load_station
from robot_stack.errors import ConfigError
from robot_stack.interfaces import Teleoperator
from robot_stack.types import CommandMode

FOLLOWER = {"driver": "franka", "options": {"address": "127.0.0.9"}}
LEADER = {"driver": "aloha", "options": {"role": "leader", "model": "wx250s", "port": "/dev/null"}}
CALIBRATION = {"signs": [1] * 7, "offsets": [0.0] * 7}
# What a device cannot do without.
NEEDED = {
    "leader_arms": {"pairs": {"leader": "arm"}},
    "gello": {"port": "/dev/null", "gripper_id": None, "calibration": CALIBRATION},
}


def station(tmp_path: Path, driver: str, **options: object):
    path = tmp_path / "station.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "station": "s",
                "robots": {"arm": FOLLOWER, "leader": LEADER},
                "groups": {"arms": {"robots": ["arm"]}, "leaders": {"robots": ["leader"]}},
                "teleop": {
                    "driver": driver,
                    "group": "arms",
                    "options": {**NEEDED.get(driver, {}), **options},
                },
            }
        )
    )
    return load_station(path)


@pytest.mark.parametrize("driver", registry.names("teleop"))
def test_it_offers_what_a_teleoperator_offers(tmp_path, driver):
    described = station(tmp_path, driver)
    device = registry.load("teleop", driver).from_config(described.teleop, described)
    assert device.mode in CommandMode
    for name, wanted in inspect.getmembers(Teleoperator, inspect.isfunction):
        if name.startswith("_"):
            continue
        offered = inspect.signature(getattr(device, name)).parameters
        assert list(offered) == list(inspect.signature(wanted).parameters)[1:], name
    device.disconnect()  # harmless before it is connected, and twice
    device.disconnect()


@pytest.mark.parametrize("driver", registry.names("teleop"))
def test_an_unknown_option_is_told_with_file_and_line(tmp_path, driver):
    described = station(tmp_path, driver, no_such_option=1)
    with pytest.raises(ConfigError, match=r"station\.yaml:\d+: teleop\.options\.no_such_option"):
        registry.load("teleop", driver).from_config(described.teleop, described)


POSES = [
    name
    for name in registry.names("teleop")
    if getattr(registry.load("teleop", name), "mode", None) is CommandMode.EE_POSE
]


@pytest.mark.parametrize("driver", POSES)
def test_an_arm_that_takes_no_poses_is_told(tmp_path, driver):
    described = station(tmp_path, driver)
    leaders = dataclasses.replace(described.teleop, group="leaders")
    described = dataclasses.replace(described, teleop=leaders)
    with pytest.raises(ConfigError, match="cannot be told where to have it"):
        registry.load("teleop", driver).from_config(described.teleop, described)


def test_most_devices_are_of_poses():
    assert {"spacemouse", "gamepad", "keyboard", "twists"} <= set(POSES)
