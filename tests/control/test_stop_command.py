"""`robot-stack stop` when something is wrong: a name, a file, no supervisor."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from robot_stack.cli import main
from robot_stack.processes import started_at
from robot_stack.records import ring_path
from robot_stack.shared_memory import Flag, runtime_dir

GROUPS = {"left_cell": ("arms", "hands"), "right_cell": ("arms",)}
Flags = dict[tuple[str, str], Flag]


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flags]:
    """What two stations without supervisors leave: their stop flags; the first has a process."""
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path / "runtime"))
    with contextlib.ExitStack() as stack:
        yield {
            (station, group): stack.enter_context(
                contextlib.closing(Flag(ring_path(station, "stop", group)))
            )
            for station, groups in GROUPS.items()
            for group in groups
        }


def raised(flags: Flags) -> list[tuple[str, str]]:
    return [key for key, flag in flags.items() if flag.value and flag.asked]


def test_one_group_without_a_supervisor(flags: Flags, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", "left_cell", "--group", "hands", "--reason", "a finger", "--json"]) == 0
    assert raised(flags) == [("left_cell", "hands")]
    assert flags["left_cell", "hands"].reason == "a finger"
    assert json.loads(capsys.readouterr().out) == {
        "ok": True, "stations": ["left_cell"], "groups": ["hands"], "supervisor": False
    }  # fmt: skip


@pytest.mark.parametrize("text", ["tsk: x\nstation: left_cell\n", "station: 'left_cell'\n\t{["])
def test_a_file_that_does_not_load_is_asked_for_its_station(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    file = tmp_path / "edited.yaml"
    file.write_text(text)
    assert main(["stop", str(file)]) == 0
    assert raised(flags) == [("left_cell", "arms"), ("left_cell", "hands")]
    said = capsys.readouterr()
    assert "does not load" in said.err and "stopped: left_cell;" in said.out


@pytest.mark.parametrize("text", [None, "", "station: another_one\ntsk: x\n"])
def test_a_file_that_names_no_station_stops_all(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    file = tmp_path / "edited.yaml"
    if text is not None:
        file.write_text(text)
    assert main(["stop", str(file)]) == 0
    assert raised(flags) == list(flags)
    said = capsys.readouterr()
    assert "every station" in said.err and "stopped: left_cell, right_cell;" in said.out


def test_a_mistyped_name_says_that_nothing_was_stopped(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runtime_dir("left_cell") / "pid.arm.left").write_text(
        f"{os.getpid()} {started_at(os.getpid())}"
    )
    assert main(["stop", "left_cel"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: NOT STOPPED: no station 'left_cel'")
    assert "did you mean 'left_cell'?" in said
    assert "Stations here: left_cell, right_cell (not running)." in said
    assert "power" in said
    assert raised(flags) == []
    assert not (tmp_path / "runtime" / "left_cel").exists()


def test_a_mistyped_group_says_that_nothing_was_stopped(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for station in ("left_cell", str(tmp_path / "missing.yaml")):
        assert main(["stop", station, "--group", "hand"]) == 1
        said = capsys.readouterr().err
        assert "NOT STOPPED" in said and "(groups: arms, hands)" in said and "power" in said
    assert raised(flags) == []


def test_a_flag_that_can_not_be_raised_keeps_no_other_down(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ring_path("left_cell", "stop", "a_broken_one").mkdir()
    assert main(["stop", str(tmp_path / "missing.yaml")]) == 1
    assert raised(flags) == list(flags)
    said = capsys.readouterr().err
    assert "NOT STOPPED: not everything" in said and "a_broken_one" in said and "power" in said


def test_where_nothing_runs_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path / "runtime"))
    for station in ("left_cell", str(tmp_path / "missing.yaml")):
        assert main(["stop", station]) == 1
        assert "NOT STOPPED" in capsys.readouterr().err
