"""`robot-stack record`: sessions, keys, panel and the command, beside a station's real rings."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from rich.console import Console

from collect.dataset.trash import listing
from collect.keys import Keys
from collect.panel import render
from collect.session import RecordingSession, recorded_group, recorder_config
from robot_stack.config import Station, load_station
from robot_stack.episode import Episode, check
from robot_stack.errors import ConfigError, EpisodeError
from robot_stack.types import Source
from tests.collect.publisher import Publisher

ROOT = Path(__file__).parents[2]
STATION = """
station: session
task: transfer_cube
world: {scene: aloha_transfer_cube}
robots:
  left: {driver: aloha, options: {role: follower, model: vx300s, port: "virtual:left"}}
  right: {driver: aloha, options: {role: follower, model: vx300s, port: "virtual:right"}}
  leader: {driver: aloha, falls: false, options: {role: leader, model: wx250s, port: "virtual:l"}}
groups:
  leaders: {robots: [leader]}
  followers: {robots: [right, left]}
cameras:
  cam_high: {driver: test_pattern, width: 64, height: 48, fps: 25}
recording: {group: followers, directory: DIRECTORY, free_space_floor_gb: 0.0}
"""


@pytest.fixture
def station(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Station:
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path / "run"))
    path = tmp_path / "station.yaml"
    path.write_text(STATION.replace("DIRECTORY", str(tmp_path / "episodes")))
    return load_station(path)


@pytest.fixture
def publisher(station: Station) -> Iterator[Publisher]:
    publisher = Publisher(station)
    publisher.advance()
    ended = threading.Event()

    def publish() -> None:
        while not ended.wait(0.004):
            publisher.advance()

    thread = threading.Thread(target=publish)
    thread.start()
    yield publisher
    ended.set()
    thread.join()
    publisher.close()


@pytest.fixture
def running(station: Station) -> Iterator[subprocess.Popen[str]]:
    """The publisher as a process, for tests of the command."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.collect.publisher", station.path],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def begin(session: RecordingSession) -> Path:
    """Start an episode as soon as the publisher, which a busy machine may hold up, is heard."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return session.start()
        except EpisodeError as error:
            assert "nothing comes from" in str(error) and time.monotonic() < deadline, error
            time.sleep(0.01)


def drive(session: RecordingSession, rows: int) -> None:
    """Poll until the running episode has ``rows`` rows."""
    until(lambda: session.recorder.stats().rows >= rows, session)


def until(done: Callable[[], bool], session: RecordingSession) -> None:
    deadline = time.monotonic() + 60
    while not done():
        session.poll()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.002)


def wait(done: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.01)


def episodes(station: Station) -> list[str]:
    return sorted(path.name for path in Path(station.recording.directory).glob("*.hdf5"))


# -- what a station file means ---------------------------------------------------------------


def test_rows_hold_the_recorded_group_in_its_order(station: Station) -> None:
    config = recorder_config(station)
    assert [(robot.name, robot.in_rows) for robot in config.robots] == [
        ("right", True),
        ("left", True),
        ("leader", False),
    ]
    assert config.world and config.rate_hz == 50.0
    assert recorder_config(station, encoding="raw").encoding == "raw"
    json.dumps(config.robots[0].info)


def test_the_recorded_group_must_be_clear(tmp_path: Path, station: Station) -> None:
    text = Path(station.path).read_text().replace("group: followers, ", "")
    unclear = tmp_path / "unclear.yaml"
    unclear.write_text(text)
    with pytest.raises(ConfigError, match=r"recording.group is missing.*leaders, followers"):
        recorded_group(load_station(unclear))


# -- the session -----------------------------------------------------------------------------


def test_a_session_saves_what_it_saw(station: Station, publisher: Publisher) -> None:
    with RecordingSession(station, task="hand it over", operator="p07") as session:
        path = begin(session)
        drive(session, 20)
        saved = session.stop(success=True)
        assert saved.path == path and session.last is not None and session.last.success is True
        begin(session)
        drive(session, 5)
    assert episodes(station) == ["episode_0.hdf5", "episode_1.hdf5"]
    with Episode.open(path) as episode:
        said = episode.metadata
        assert len(episode) == saved.rows >= 20
        assert episode.robots == ("right", "left", "leader")
        assert episode.qpos.shape[1] == 14
        assert (episode.source == Source.DEMO).all() and (episode.token == 41).all()
        assert (said.success, said.labeller, said.operator) == (True, "p07", "p07")
        assert (said.task, said.language, said.task_id) == (
            "hand it over",
            "hand it over",
            "transfer_cube",
        )
        assert said.session == session.session_id and said.station == "session"
        assert said.robots["right"]["embodiment"]
    with Episode.open(path.with_name("episode_1.hdf5")) as episode:  # closed while recording
        assert episode.metadata.success is None and episode.metadata.labeller is None
        assert episode.metadata.session == session.session_id
    assert [p for p in check(path) if p.severity == "error"] == []


def test_discarded_and_trashed_numbers_are_used_again(
    station: Station, publisher: Publisher
) -> None:
    with RecordingSession(station) as session:
        begin(session)
        drive(session, 5)
        session.discard()
        assert episodes(station) == []
        with pytest.raises(EpisodeError, match="no episode yet"):
            session.label_last(True)
        for _ in range(2):
            begin(session)
            drive(session, 5)
            session.stop()
        session.label_last(False)
        directory = Path(station.recording.directory)
        assert session.trash_last() == directory / "episode_1.hdf5"
        assert [entry.name for entry in listing(directory)] == ["episode_1.hdf5"]
        assert begin(session).name == "episode_1.hdf5"
        drive(session, 5)
        session.stop(True)
        assert [kept.success for kept in session.kept] == [None, True]
        assert session.discarded == 2


def test_a_limit_ends_an_episode_and_the_world_judges(
    station: Station, publisher: Publisher
) -> None:
    publisher.success = True
    with RecordingSession(station, seconds=0.4) as session:
        begin(session)
        until(lambda: bool(session.kept), session)
        (kept,) = session.kept
        assert kept.success is True and not session.recording
    with Episode.open(kept.saved.path) as episode:
        assert episode.metadata.ended == "stopped"
        assert episode.metadata.labeller == "world"
        assert 0.3 <= len(episode) / 50 <= 5


def test_a_fault_does_not_end_the_episode(station: Station, publisher: Publisher) -> None:
    with RecordingSession(station) as session:
        begin(session)
        drive(session, 10)
        assert session.troubles() == []
        publisher.fault = b"servo 4 overloaded"
        told: list[str] = []

        def fault_told() -> bool:
            told.extend(session.troubles())
            return bool(told)

        until(fault_told, session)
        drive(session, 20)
        assert [*told, *session.troubles()] == ["left: servo 4 overloaded"]  # told once
        publisher.fault = b""
        drive(session, 30)
        saved = session.stop()
    with Episode.open(saved.path) as episode:
        assert len(episode) >= 30
        assert any("servo 4 overloaded" in event.text for event in episode.events)


def test_a_silent_station_is_told(station: Station) -> None:
    with RecordingSession(station) as session:
        with pytest.raises(EpisodeError, match="robot-stack serve"):
            session.start()
        assert session.snapshot().robots[0].trouble == "no arm process"
        assert session.troubles()[0] == "left: no arm process"
        assert session.world_verdict() is None


# -- the panel -------------------------------------------------------------------------------


def test_the_panel_shows_what_matters(station: Station, publisher: Publisher) -> None:
    with RecordingSession(station, operator="p07") as session:
        begin(session)
        drive(session, 10)
        publisher.fault = b"servo 4 overloaded"
        drive(session, 20)
        until(lambda: bool(session.troubles()), session)
        session.tell("something happened")
        now = session.snapshot(wanted=5)
        session.discard()
    assert now.state == "recording" and now.rows >= 20
    assert {robot.name: robot.state for robot in now.robots} == {
        "left": "fault",
        "right": "armed",
        "leader": "armed",
    }
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(render(now))
    text = console.export_text()
    for word in (
        "RECORDING",
        "episode_0",
        "of 5",
        "servo 4 overloaded",
        "cam_high",
        "teleop (lease 41)",
        "GB free",
        "something happened",
        "p07",
        "discard",
    ):
        assert word in text, word


def test_a_long_fault_leaves_the_figures_readable(station: Station, publisher: Publisher) -> None:
    with RecordingSession(station) as session:
        begin(session)
        publisher.fault = b"no answer for 0.11 s: no servo on /dev/shm/somewhere/tty answered " * 3
        drive(session, 20)
        until(lambda: bool(session.troubles()), session)
        now = session.snapshot()
        session.discard()
    console = Console(width=80, height=24, file=io.StringIO())
    rows = ["".join(s.text for s in line) for line in console.render_lines(render(now, 24))]
    for column in ("state", "Hz", "age ms", "overruns"):
        assert any(column in row and "robot" in row for row in rows), column
    assert any("left" in row and "fault" in row for row in rows)
    assert any("left: no answer for 0.11 s" in row for row in rows)
    assert len(rows) <= 24


@pytest.mark.parametrize("size", [(80, 24), (120, 50)])
def test_the_newest_message_and_the_keys_fit_the_terminal(
    station: Station, publisher: Publisher, size: tuple[int, int]
) -> None:
    with RecordingSession(station) as session:
        begin(session)
        drive(session, 5)
        for n in range(9):
            session.tell(f"message {n} " + "that says very much " * 9)
        now = session.snapshot()
        session.discard()
    now = dataclasses.replace(now, robots=[*now.robots, now.robots[0]], cameras=[*now.cameras] * 4)
    width, height = size
    console = Console(width=width, height=height, file=io.StringIO())
    lines = console.render_lines(render(now, height))
    text = "\n".join("".join(segment.text for segment in line) for line in lines)
    assert len(lines) <= height
    assert "message 8" in text and "quit" in text and "GB free" in text


# -- keys ------------------------------------------------------------------------------------


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


def test_keys_come_without_enter_and_the_terminal_is_restored() -> None:
    with terminal() as (ours, theirs):
        before = termios.tcgetattr(theirs)
        with Keys(theirs) as keys:
            assert keys.poll() == []
            for typed, expected in (
                (b"s", ["s"]),
                (b" \rQ", [" ", "enter", "q"]),
                (b"\x1b[D", []),  # an arrow is no `d`
                ("é".encode(), ["é"]),
            ):
                os.write(ours, typed)
                select.select([theirs], [], [], 10)
                assert keys.poll() == expected
        assert termios.tcgetattr(theirs) == before


def test_without_a_terminal_there_are_no_keys(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+") as file, Keys(file.fileno()) as keys:
        assert not keys.active and keys.poll() == []


# -- the command -----------------------------------------------------------------------------


def record(station: Station, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "robot_stack", "record", station.path, *arguments]
    return subprocess.Popen(command, cwd=ROOT, text=True, **options)


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0, out
    (line,) = out.splitlines()
    report: dict[str, Any] = json.loads(line)
    return report


@pytest.mark.slow
def test_automatic_recording_prints_one_object(
    station: Station, running: subprocess.Popen[str]
) -> None:
    arguments = ("--auto", "--episodes", "2", "--seconds", "0.6", "--raw", "--json")
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    report = finished(record(station, *arguments, **pipes))
    assert (report["ok"], report["episodes"], report["failures"]) == (True, 2, 2)
    assert episodes(station) == ["episode_0.hdf5", "episode_1.hdf5"]
    for path in report["files"]:
        with Episode.open(path) as episode:
            assert episode.schema.encoding == "raw"
        assert [p for p in check(path) if p.severity == "error"] == []


@pytest.mark.slow
def test_two_recorders_share_a_directory(station: Station, running: subprocess.Popen[str]) -> None:
    arguments = ("--auto", "--episodes", "3", "--seconds", "0.4", "--json")
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    processes = [record(station, *arguments, **pipes) for _ in range(2)]
    reports = [finished(process) for process in processes]
    files = sorted(file for report in reports for file in report["files"])
    assert len(set(files)) == 6
    assert episodes(station) == [f"episode_{i}.hdf5" for i in range(6)]


@pytest.mark.slow
def test_a_killed_recorder_is_recovered_by_the_next(
    station: Station, running: subprocess.Popen[str]
) -> None:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    directory = Path(station.recording.directory)
    killed = record(station, "--auto", "--seconds", "60", **pipes)
    part = directory / "episode_0.hdf5.part"
    wait(lambda: part.exists() and part.stat().st_size > 300_000, "recording")
    killed.kill()
    killed.communicate()
    arguments = ("--auto", "--episodes", "1", "--seconds", "0.4", "--json")
    report = finished(record(station, *arguments, **pipes))
    assert report["recovered"] == 1
    assert episodes(station) == ["episode_0.hdf5", "episode_1.hdf5"]
    with Episode.open(directory / "episode_0.hdf5") as episode:
        assert episode.metadata.ended == "recovered" and len(episode) > 0


class Terminal:
    """`robot-stack record` with a terminal of its own, read as it goes."""

    def __init__(self, station: Station, *arguments: str, stdout: IO[str] | None = None) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (50, 120))
        environment = {**os.environ, "TERM": "xterm-256color"}
        options = {"stdin": slave, "stdout": stdout or slave, "stderr": slave, "env": environment}
        self.process = record(station, *arguments, start_new_session=True, **options)
        os.close(slave)
        self.text = ""

    def read(self) -> None:
        while select.select([self.master], [], [], 0)[0]:
            try:
                data = os.read(self.master, 65536)
            except OSError as error:
                assert error.errno == errno.EIO  # the other side was closed
                return
            if not data:
                return
            self.text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode(errors="replace"))

    def press(self, key: str, expected: str) -> None:
        """Type a key and wait for a text that was not there before.

        Again when the station was not heard, which a busy machine may cause.
        """
        while True:
            self.read()
            self.text = ""
            os.write(self.master, key.encode())
            self.expect(f"{expected}|nothing comes from")
            if re.search(expected, self.text):
                return

    def expect(self, expected: str) -> None:
        """Wait for a text, given as a regular expression."""

        def seen() -> bool:
            self.read()
            return re.search(expected, self.text) is not None

        try:
            wait(seen, expected)
        except AssertionError:
            raise AssertionError(f"{expected!r} did not come; seen: {self.text[-6000:]}") from None

    def end(self) -> int:
        wait(lambda: self.read() or self.process.poll() is not None, "the end")
        self.read()
        os.close(self.master)
        assert self.process.returncode is not None
        return self.process.returncode


@pytest.mark.slow
def test_keys_drive_a_session(station: Station, running: subprocess.Popen[str]) -> None:
    terminal = Terminal(station, "--operator", "p07", "--task", "hand over")
    terminal.expect("IDLE")
    terminal.expect("space/enter")
    terminal.press(" ", "recording episode_0.hdf5")
    terminal.expect(r"[1-9]\d+ rows")
    terminal.press("s", "saved episode_0.hdf5")
    terminal.press("f", "episode_0.hdf5 is now labelled failure")
    terminal.press("\r", "recording episode_1.hdf5")
    terminal.press("d", "discarded")
    terminal.press(" ", "recording episode_1.hdf5")
    terminal.press("r", "discarded")
    terminal.press(" ", "saved episode_1.hdf5")
    terminal.press("d", "episode_1.hdf5 is in the trash")
    terminal.press(" ", "recording episode_1.hdf5")
    assert running.stdin is not None
    running.stdin.write("fault servo 4 overloaded\n")
    running.stdin.flush()
    terminal.expect("left: servo 4 overloaded")
    os.write(terminal.master, b"q")
    assert terminal.end() == 0
    assert "2 episodes" in terminal.text and "3 discarded" in terminal.text
    assert episodes(station) == ["episode_0.hdf5", "episode_1.hdf5"]
    with Episode.open(Path(station.recording.directory) / "episode_0.hdf5") as episode:
        assert (episode.metadata.success, episode.metadata.operator) == (False, "p07")


@pytest.mark.slow
def test_ctrl_c_saves_what_is_there(
    tmp_path: Path, station: Station, running: subprocess.Popen[str]
) -> None:
    with (tmp_path / "out").open("w+") as out:
        terminal = Terminal(station, "--json", stdout=out)
        terminal.expect("IDLE")
        terminal.press(" ", "recording episode_0.hdf5")
        terminal.expect(r"[1-9]\d+ rows")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 0
        assert "not labelled" in terminal.text
        out.seek(0)
        (line,) = out.readlines()
    report = json.loads(line)
    assert (report["episodes"], report["unknown"], report["ok"]) == (1, 1, True)
    with Episode.open(report["files"][0]) as episode:
        assert episode.metadata.success is None and episode.metadata.ended == "stopped"
        assert ("interrupted", "SIGINT") in [(event.kind, event.text) for event in episode.events]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no terminal to read keys from"),
        (("--auto",), "--auto needs --seconds"),
        (("--auto", "--seconds", "-1"), "is not a time"),
        (("--auto", "--seconds", "1", "--episodes", "0"), "is no count"),
        (("--auto", "--seconds", "1"), "robot-stack serve"),  # nobody publishes
    ],
)
def test_wrong_use_is_answered(station: Station, arguments: tuple[str, ...], said: str) -> None:
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = record(station, *arguments, **pipes)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 1 and said in err
