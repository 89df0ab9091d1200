"""Identification of virtual arms: by their servos, by a wiggle, and the files that come of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardware.aloha import identify
from robot_stack.config import load_station
from robot_stack.errors import ConfigError
from tests.aloha.setup_moves import (
    WIGGLE_ACCELERATION,
    WIGGLE_SPEED,
    WRIST,
    assert_within,
    goals,
)

BAUDS = (1_000_000, 57_600)


def _run(*options: str, ask: Callable[[str], str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    identify.add_arguments(parser)
    return identify.run(
        parser.parse_args(list(options)), ask or (lambda text: pytest.fail(f"asked: {text}"))
    )


def test_arms_are_told_by_their_servos(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    def edit(name: str, rows: list[dict[str, Any]]) -> None:
        if name == "leader_left":
            rows[7]["model"] = "XM430-W350"  # replaced
        if name == "follower_left":
            del rows[4]

    bench = make_bench("follower_left", "leader_left", edit=edit)
    bench.set("follower_left", 8, "baud_rate", 1)
    follower = identify.scan_port(bench.process.ports["follower_left"], BAUDS)
    assert follower.model == "vx300s"
    assert follower.complaints == (
        "servo 5 (elbow_shadow) is missing",
        "servo 8 speaks 57600 baud",
    )
    leader = identify.scan_port(bench.process.ports["leader_left"], BAUDS)
    assert leader.model == "wx250s"
    assert leader.replaced == {"wrist_rotate": "XM430-W350"}
    nothing = identify.scan_port(str(tmp_path / "nowhere"), BAUDS)
    assert nothing.model is None
    assert "cannot open" in str(nothing)
    # Looking changed nothing.
    for name in ("follower_left", "leader_left"):
        assert len(bench.control.goal_log(bus=name).value) == 0


@pytest.mark.slow
def test_the_arm_that_is_asked_about_swings_its_wrist(
    make_bench: Callable[..., Any], runtime: Path, tmp_path: Path
) -> None:
    bench = make_bench("leader_left")
    port, asked = bench.process.ports["leader_left"], []

    def answer(text: str) -> str:
        asked.append((text, len(bench.goals("leader_left", WRIST))))
        return "leader_right"

    file = tmp_path / "lab.yaml"
    assert _run("--port", port, "--wiggle", "--write", str(file), ask=answer) == 0
    (text, packets), *more = asked
    assert "which arm moved?" in text
    assert more == []
    assert packets > 100  # it had moved when the question came
    t, ticks = goals(bench, "leader_left", WRIST)
    assert np.ptp(ticks) == pytest.approx(34, abs=3)
    assert_within(t, ticks, WIGGLE_SPEED, WIGGLE_ACCELERATION)
    assert [bench.get("leader_left", n, "torque_enable") for n in range(1, 10)] == [0] * 9
    assert load_station(file).robots["leader_right"].options["port"] == port


def test_the_operator_names_them_and_the_station_loads(
    make_bench: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ("follower_left", "follower_right", "leader_left", "leader_right")
    bench = make_bench(*names)
    ports = bench.process.ports
    moved: list[str] = []
    monkeypatch.setattr(identify, "_wiggle", lambda found, *_: moved.append(found.port))
    monkeypatch.setattr(identify, "BAUDS", BAUDS)
    # Plugged in crosswise; the third answer is a slip of the fingers.
    answers = iter(["follower_right", "follower_left", "rigth", "leader_left", "leader_right"])
    options = [word for name in names for word in ("--port", ports[name])]
    station_file, udev = tmp_path / "lab.yaml", tmp_path / "rules"
    code = _run(
        *options, "--wiggle", "--write", str(station_file), "--udev", str(udev), "--json",
        ask=lambda _: next(answers),
    )  # fmt: skip
    assert code == 0
    assert moved == [ports[name] for name in names]
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["arms"]["follower_right"] == ports["follower_left"]
    station = load_station(station_file)
    assert set(station.robots) == set(names)
    assert station.robots["follower_left"].options["port"] == ports["follower_right"]
    assert station.robots["leader_left"].options["role"] == "leader"
    assert station.groups["followers"].robots == ("follower_left", "follower_right")
    assert station.teleop is not None
    assert station.teleop.options["pairs"]["leader_left"] == "follower_left"
    assert udev.read_text().count("is no USB adapter") == 4

    with pytest.raises(ConfigError, match="--force"):
        _run(*options, "--write", str(station_file))


def test_names_without_questions(make_bench: Callable[..., Any], tmp_path: Path) -> None:
    bench = make_bench("leader_left")
    port = bench.process.ports["leader_left"]
    file = tmp_path / "one.yaml"
    assert _run("--port", port, "--name", f"{port}=leader_left", "--write", str(file)) == 0
    assert load_station(file).robots["leader_left"].falls is False


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--name", "nonsense"], "PORT=ROBOT"),
        (["--name", "/dev/ttyUSB0=arm"], "PORT=ROBOT"),
        (["--write", "{tmp}/x.yaml"], "no arm has a name yet"),
    ],
)
def test_wrong_options(tmp_path: Path, options: list[str], says: str) -> None:
    options = [option.replace("{tmp}", str(tmp_path)) for option in options]
    with pytest.raises(ConfigError, match=says):
        _run("--port", str(tmp_path / "nowhere"), *options)


def test_nobody_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--port", str(tmp_path / "nowhere"), "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert "cannot open" in told["ports"][0]["complaints"][0]


def test_udev_rules_name_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identify, "_usb_serial", lambda _: "FT4THV1K")
    found = identify.Found("/dev/ttyUSB0", {}, "wx250s", ())
    rules = identify.udev_rules({"leader_left": found})
    assert 'ATTRS{serial}=="FT4THV1K"' in rules
    assert 'ATTR{device/latency_timer}="1"' in rules
    assert 'SYMLINK+="robot_stack_leader_left"' in rules
