"""The agent obeys two words, keeps what it has, and tells nobody its token."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import resource
import signal
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collect.crowd import agent_link
from collect.crowd.agent import OrderRefusedError, StationAgent, checked_order
from collect.crowd.agent_disk import Disk
from collect.crowd.agent_link import Heart, SiteError, SiteLink, Sync
from collect.crowd.outbox import KEPT_DONE_S, Entry, Outbox, Pairing
from collect.crowd.tables import new_id
from collect.space import free_bytes
from robot_stack.cli import main
from robot_stack.config import load_station
from robot_stack.episode import EpisodeMetadata, EpisodeSchema, EpisodeWriter, RobotLayout, Row
from robot_stack.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
STATION = str(ROOT / "configs" / "aloha_virtual.yaml")
PLAY = "4cf06e5f-7eba-45d0-ac24-9dc48d0c2c15"
START: dict[str, Any] = {
    "do": "start",
    "play": PLAY,
    "kind": "task",
    "fence": 7,
    "task": "cube",
    "instruction": "Put the cube into the bowl",
    "seconds": 120,
    "contributor": "0f" * 16,
    "consent": "1",
    "scopes": ["record", "research"],
}


def test_start_and_stop_are_obeyed() -> None:
    assert checked_order(START, 7).seconds == 120
    assert checked_order({"do": "stop", "play": PLAY}, 7).do == "stop"
    assert checked_order({"do": "stop", "play": PLAY}, 10**6).do == "stop", "also of another turn"


@pytest.mark.parametrize(
    "order",
    [
        {**START, "do": "move"},
        {**START, "do": "home"},
        {**START, "target": [0.0] * 14},
        {**START, "joints": {"waist": 1.0}},
        {**START, "command": "robot-stack reset"},
        {"do": "stop", "play": PLAY, "velocity": 1.0},
        {**START, "play": "../../etc/passwd"},
        {**START, "seconds": 10**6},
        {**START, "seconds": None},
        {**START, "kind": "replay"},
        {**START, "fence": None},
        {**START, "fence": 6},
        {**START, "scopes": []},
        {**START, "scopes": ["research"]},
        {**START, "consent": None},
        {**START, "contributor": None},
        {"do": "arm"},
        {},
    ],
)
def test_the_web_can_request_and_never_command_motion(order: dict[str, Any]) -> None:
    with pytest.raises(OrderRefusedError):
        checked_order(order, 7)


def test_the_site_has_no_way_to_the_robot() -> None:
    """Nothing that the site's processes load can talk to a control server or a device."""
    code = (
        "import sys, collect.crowd.app as app; app._routers();"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('hardware', 'server', 'zmq')"
        " or m in ('robot_stack.client', 'collect.teleop', 'collect.crowd.agent')];"
        "sys.exit(repr(bad) if bad else 0)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr


# -- the outbox ------------------------------------------------------------------------------------


def ended(play: str, at: float, file: str | None = None) -> Entry:
    return Entry(play, "ended", START, ended_at=at, result={"rows": 1}, file=file)


def test_the_outbox_outlives_its_process(tmp_path: Path) -> None:
    one, two, three = new_id(), new_id(), new_id()
    outbox = Outbox(tmp_path / "o")
    assert outbox.fence == 0
    outbox.put(Entry(one, "begun", START))
    outbox.put(ended(two, 20.0))
    outbox.put(ended(three, 10.0, "episode_0.hdf5"))
    (outbox.episodes / "episode_0.hdf5").write_bytes(b"x")
    again = Outbox(tmp_path / "o")
    assert [entry.play for entry in again.entries("begun")] == [one]
    assert [entry.play for entry in again.entries("ended")] == [three, two]
    assert again.fence == 7, "an order of an earlier turn stays refused"
    again.done(again.entries("ended")[0])
    assert not (outbox.episodes / "episode_0.hdf5").exists()
    later = Outbox(tmp_path / "o")
    known = later.get(three)
    assert known is None, "done a lifetime ago"
    recent = ended(three, time.time())
    later.put(recent)
    later.done(recent)
    known = Outbox(tmp_path / "o").get(three)
    assert known is not None and known.state == "done", "a play is never begun twice"


def test_a_new_pairing_begins_with_new_turns(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    over, waiting = ended(new_id(), time.time()), ended(new_id(), time.time())
    outbox.put(replace(over, order={**START, "fence": 9}))
    outbox.done(outbox.entries("ended")[0])
    outbox.put(waiting)
    assert outbox.fence == 9
    outbox.pair(Pairing("https://crowd.test", "cafe", "secret"))
    again = Outbox(tmp_path)
    assert outbox.fence == again.fence == 7, "of what the site doesn't have yet"
    known = again.get(over.play)
    assert known is not None and known.state == "done", "and is never begun twice"


def test_what_the_site_did_not_want_is_kept_for_a_month(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    kept, erased = new_id(), new_id()
    for play in (kept, erased):
        outbox.put(ended(play, time.time(), f"{play}.damaged"))
        (outbox.episodes / f"{play}.damaged").write_bytes(b"x")
        entry = outbox.get(play)
        assert entry is not None
        outbox.done(entry, keep=play == kept)
    assert [path.name for path in outbox.episodes.iterdir()] == [f"{kept}.damaged"]
    again = Outbox(tmp_path)
    again.tidy()
    (entry,) = [entry for entry in again.entries("done") if entry.file is not None]
    assert (again.episodes / str(entry.file)).exists()
    again.put(replace(entry, ended_at=time.time() - KEPT_DONE_S - 1))
    again.tidy()
    assert list(again.episodes.iterdir()) == []
    assert again.get(kept) is None and Outbox(tmp_path).get(kept) is None


@pytest.mark.parametrize("name", ["episode_0.hdf5", "episode_0.hdf5.broken"])
def test_a_damaged_recording_does_not_stop_the_agent(tmp_path: Path, name: str) -> None:
    """It is told of as nothing, and kept under its play's name."""
    outbox = Outbox(tmp_path)
    outbox.put(Entry(PLAY, "begun", START))
    (outbox.episodes / name).write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500))
    said: list[str] = []
    station = load_station(STATION)
    agent = StationAgent(station, outbox, Pairing("http://127.0.0.1:9", "c", "t"), say=said.append)
    agent.recover()
    (entry,) = outbox.entries("ended")
    assert (entry.play, entry.result["rows"], entry.file) == (PLAY, 0, f"{PLAY}.damaged")
    assert entry.result["sha256"] is None
    assert [path.name for path in outbox.episodes.iterdir()] == [entry.file]
    assert any("kept for 30 days" in text for text in said)
    agent.recover()
    assert outbox.entries("ended") == [entry]


def test_a_recording_that_was_cut_off_is_told_of(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.put(Entry(PLAY, "begun", START))
    (outbox.episodes / "episode_9.hdf5").write_bytes(b"of somebody before")
    joints = ("waist", "shoulder", "elbow", "forearm", "wrist", "turn", "gripper")
    followers = tuple(RobotLayout(name, joints) for name in ("follower_left", "follower_right"))
    writer = EpisodeWriter(
        outbox.episodes / "episode_3.hdf5",
        EpisodeSchema(robots=followers, cameras={}),
        EpisodeMetadata(uuid=PLAY),
    )
    for i in range(3):
        writer.append(Row(t_ns=10**9 + i * 20_000_000, qpos=np.zeros(14), action=np.zeros(14)))
    path = writer.finalise()
    unpaired = Pairing("http://127.0.0.1:9", "c", "t")
    StationAgent(load_station(STATION), outbox, unpaired, say=lambda _: None).recover()
    (entry,) = outbox.entries("ended")
    assert (entry.file, entry.result["rows"]) == (path.name, 3)
    assert entry.result["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (entry.result["ended_by"], entry.result["size"]) == ("lost", path.stat().st_size)


def test_a_write_that_was_cut_off_leaves_what_was(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    play = new_id()
    outbox.put(Entry(play, "begun", START))
    (tmp_path / "plays" / f"{play}.new").write_text('{"play": "')
    known = Outbox(tmp_path).get(play)
    assert known is not None and known.state == "begun"


def test_what_the_disk_does_not_take_is_written_later(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    play, other = new_id(), new_id()
    outbox.put(Entry(play, "begun", START))
    outbox.settle()
    (tmp_path / "plays").rename(tmp_path / "away")
    with pytest.raises(OSError, match=other):
        outbox.put(Entry(other, "begun", START))
    assert outbox.get(other) is None, "what is not on the disk is not begun"
    outbox.keep(ended(play, time.time(), "episode_0.hdf5"))
    entry = outbox.get(play)
    assert entry is not None and entry.state == "ended", "the site is told meanwhile"
    outbox.done(entry)
    with pytest.raises(OSError, match=play):
        outbox.settle()
    (tmp_path / "away").rename(tmp_path / "plays")
    written = Outbox(tmp_path).get(play)
    assert written is not None and written.state == "begun", "who is killed now finds it begun"
    outbox.settle()
    written = Outbox(tmp_path).get(play)
    assert written is not None and written.state == "done"
    assert {path.name for path in tmp_path.iterdir()} == {"plays", "episodes"}


def test_a_disk_that_is_nearly_full_begins_nothing(tmp_path: Path) -> None:
    """It is full to the agent when it is to the recorder."""
    outbox = Outbox(tmp_path)
    assert Disk(outbox, 0).look() is None
    floor = free_bytes(tmp_path) + 10**9
    told = Disk(outbox, floor).look()
    assert told is not None and told.endswith(f" MB at {tmp_path}")
    missing = int(told.removeprefix("the disk of the station is full: free ").split()[0])
    assert 1200 < missing < 10_000  # other programs write meanwhile


@pytest.mark.slow
def test_a_full_disk_ends_no_agent(http_site: tuple[str, type[_Site]], tmp_path: Path) -> None:
    """No file of the agent's can grow, its log neither. It tells of a play that was cut off, and
    goes on by itself when there is room again."""
    site, beats = http_site[0], http_site[1].beats
    outbox = Outbox(tmp_path / "o")
    outbox.pair(Pairing(site, "cafe", "secret"))
    outbox.put(Entry(PLAY, "begun", START))
    command = f"{sys.executable} -m robot_stack.cli crowd station {STATION} --outbox {tmp_path}/o"
    full = ["sh", "-c", f"ulimit -S -f 0; exec {command}"]  # writing fails, to whatever file
    with (tmp_path / "log").open("w") as log:
        agent = subprocess.Popen(full, cwd=ROOT, stdout=log, stderr=log)

    def until(met: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 60.0
        while not met():
            assert agent.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (what, beats[-1:])
            time.sleep(0.05)

    def fault() -> str:
        return str(beats[-1]["fault"]) if beats else ""

    def on_disk() -> str | None:
        entry = Outbox(tmp_path / "o").get(PLAY)
        return None if entry is None else entry.state

    try:
        until(lambda: "disk of the station is full" in fault(), "the fault")
        assert f"MB at {tmp_path / 'o'}" in fault() and beats[-1]["phase"] == "fault"
        until(lambda: beats[-1]["waiting"] == 0, "the result at the site")
        assert on_disk() == "begun"
        room = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(agent.pid, resource.RLIMIT_FSIZE, room)
        until(lambda: "disk" not in fault(), "room")
        assert on_disk() == "done"
        agent.send_signal(signal.SIGINT)
        assert agent.wait(60) == 0
        assert "ended after 0 plays; 0 wait" in (tmp_path / "log").read_text()
    finally:
        agent.kill()
        agent.wait(60)


def test_how_long_ago_is_a_difference(tmp_path: Path) -> None:
    assert ended("p", time.time() - 60).ago_s == pytest.approx(60, abs=5)
    assert ended("p", time.time() + 1e6).ago_s == 0.0, "a clock that was set back"


def test_an_outbox_has_one_agent(tmp_path: Path) -> None:
    first, second = Outbox(tmp_path), Outbox(tmp_path)
    with first.owned(), pytest.raises(ConfigError, match="another agent"), second.owned():
        raise AssertionError
    with second.owned():
        assert second.pairing() is None


def test_the_token_is_for_its_owner_only(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o")
    assert outbox.pairing() is None
    old = os.umask(0)
    try:
        outbox.pair(Pairing("https://crowd.test", "cafe", "secret"))
    finally:
        os.umask(old)
    path = tmp_path / "o" / "site.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert outbox.pairing() == Pairing("https://crowd.test", "cafe", "secret")
    assert "secret" not in repr(outbox.pairing())
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        outbox.pairing()


# -- the site's address ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "site",
    ["http://robots.example.org", "ftp://localhost", "robots.example.org", "https://a/b", ""],
)
def test_the_token_goes_over_https_only(site: str) -> None:
    with pytest.raises(ConfigError):
        SiteLink(site)


@pytest.mark.parametrize("site", ["https://robots.example.org", "http://127.0.0.1:8430"])
def test_sites_that_are_good(site: str) -> None:
    assert SiteLink(site + "/").site == site


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "not paired yet"),
        (["--pair", "AAAA-AAAA"], "--pair needs --site"),
        (["--site", "http://127.0.0.1:9", "--pair", "AAAA-AAAA"], "does not answer"),
    ],
)
def test_the_command_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    command = ["crowd", "station", STATION, "--outbox", str(tmp_path), "--json", *options]
    assert main(command) == 1
    assert told in capsys.readouterr().err


def test_an_outbox_with_episodes_is_not_given_to_another_site(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outbox = Outbox(tmp_path)
    outbox.pair(Pairing("https://one.test", "cafe", "t"))
    command = ["crowd", "station", STATION, "--outbox", str(tmp_path)]
    assert main([*command, "--site", "https://two.test"]) == 1
    assert "is paired with https://one.test" in capsys.readouterr().err
    outbox.put(ended(new_id(), 1.0))
    assert main([*command, "--site", "https://two.test", "--pair", "AAAA-AAAA"]) == 1
    assert "has episodes for https://one.test" in capsys.readouterr().err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["crowd", "station", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for taught in ("--pair", "only ask to begin and to end", "outbox", "examples:"):
        assert taught in text


class _Answers(http.server.BaseHTTPRequestHandler):
    """Any site: answers what it was asked with which token."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/elsewhere":
            self.send_response(307)
            self.send_header("location", "https://thief.test/")
            self.send_header("content-length", "0")
            self.end_headers()
            return
        body = json.dumps({"token": self.headers["authorization"]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Tests are quiet."""


class _Site(http.server.BaseHTTPRequestHandler):
    """A site that wants nothing: hears heartbeats and results."""

    beats: list[dict[str, Any]]
    results: list[dict[str, Any]]
    file = "none"
    status = 200

    def do_POST(self) -> None:
        told = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path.endswith("/heartbeat"):
            self.beats.append(told["state"])
            answer: dict[str, Any] = {"fence": 0, "lease": None, "orders": []}
        else:
            self.results.append(told)
            answer = {"file": self.file}
        body = json.dumps(answer).encode()
        self.send_response(self.status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Tests are quiet."""


@pytest.fixture
def http_site() -> Iterator[tuple[str, type[_Site]]]:
    """A site on this computer, and what it hears of."""
    handler = type("Handler", (_Site,), {"beats": [], "results": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    thread.join(30)
    server.server_close()


@pytest.fixture
def https_site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A site over TLS with a certificate of its own, and that certificate."""
    certificate, key = tmp_path / "site.pem", tmp_path / "site.key"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        f"-subj /CN=localhost -addext subjectAltName=DNS:localhost -out {certificate} -keyout {key}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    server = http.server.HTTPServer(("127.0.0.1", 0), _Answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://localhost:{server.server_address[1]}", certificate
    server.shutdown()
    thread.join(30)
    server.server_close()


def test_the_token_goes_to_a_trusted_site_only(https_site: tuple[str, Path]) -> None:
    site, certificate = https_site
    with pytest.raises(SiteError, match="certificate"):
        SiteLink(site, "secret").post("/", {})
    trusted = SiteLink(site, "secret", certificate)
    assert trusted.post("/", {}) == {"token": "Bearer secret"}
    with pytest.raises(SiteError) as refusal:
        trusted.post("/elsewhere", {})
    assert refusal.value.status == 307, "nobody sends the agent elsewhere with its token"


def test_an_answer_that_is_none_and_a_disk_that_fails_end_no_sync(
    https_site: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The site's answer to a result is not one; then what was kept can't be removed for a while."""
    monkeypatch.setattr(agent_link, "LONGEST_S", 0.05)
    site, certificate = https_site
    outbox = Outbox(tmp_path / "o")
    outbox.put(ended(PLAY, time.time()))
    sync = Sync(SiteLink(site, "secret", certificate), outbox, "cafe")

    def until_trouble(told: str) -> None:
        deadline = time.monotonic() + 30.0
        while told not in str(sync.trouble):
            assert time.monotonic() < deadline, f"{told}: not told, but {sync.trouble}"
            time.sleep(0.01)

    sync.start()
    try:
        until_trouble(f"play {PLAY}: 1 validation error")
        old = Entry(PLAY, "done", ended_at=1.0, file="kept")
        (outbox.episodes / "kept").mkdir()
        outbox.put(old)
        until_trouble("kept")
        (outbox.episodes / "kept").rmdir()
        until_trouble("None")
    finally:
        sync.close()
    assert outbox.get(PLAY) is None


def test_what_waits_is_told_as_soon_as_the_site_answers_again(
    http_site: tuple[str, type[_Site]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever played gets their points then, not when the longest pause is over."""
    for pause, seconds in {
        "BEAT_S": 0.02,
        "AWAY_S": 0.02,
        "SHORTEST_S": 600,
        "LONGEST_S": 600,
    }.items():
        monkeypatch.setattr(agent_link, pause, seconds)
    site, handler = http_site
    handler.status = 503
    outbox = Outbox(tmp_path / "o")
    outbox.put(ended(PLAY, time.time()))
    sync = Sync(SiteLink(site, "t"), outbox, "cafe")
    heart = Heart(SiteLink(site, "t"), lambda: ({}, 0), sync.nudge)

    def until(met: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30.0
        while not met():
            assert time.monotonic() < deadline, (sync.trouble, heart.trouble)
            time.sleep(0.01)

    try:
        for worker in (sync, heart):
            worker.start()
            until(lambda worker=worker: "503" in str(worker.trouble))
        handler.status = 200
        until(lambda: not outbox.entries("ended"))
        until(lambda: sync.trouble is None and heart.trouble is None)
    finally:
        for worker in (sync, heart):
            worker.close()


def test_what_the_site_does_not_know_is_kept_for_a_month_and_told_of(
    http_site: tuple[str, type[_Site]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its database was brought back from a backup. One play is known again with a later one; of the
    other nothing stays, neither here nor in the directory that is shared with the site."""
    for pause in ("LONGEST_S", "REFUSED_S"):
        monkeypatch.setattr(agent_link, pause, 0.02)
    site, handler = http_site
    handler.file = "unknown"
    outbox = Outbox(tmp_path / "o")
    plays = [new_id(), new_id()]
    years = 60 * 31_536_000.0  # a clock without a battery
    for play, ago_s in zip(plays, (0.0, years), strict=True):
        outbox.put(ended(play, time.time() - ago_s, f"{play}.hdf5"))
        (outbox.episodes / f"{play}.hdf5").write_bytes(b"x")
    (tmp_path / "shared").mkdir()
    said: list[str] = []
    sync = Sync(SiteLink(site, "t"), outbox, "cafe", tmp_path / "shared", said.append)

    def until(met: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30.0
        while not met():
            assert time.monotonic() < deadline, (sync.trouble, said, outbox.entries())
            time.sleep(0.01)

    def files() -> set[str]:
        return {path.name for path in tmp_path.rglob("*.hdf5")}

    def waiting() -> set[str]:
        return {entry.play for entry in outbox.entries("ended")}

    sync.start()
    try:
        until(lambda: len(handler.results) > 4)
        assert "does not know it; in 30 days it goes" in str(sync.trouble)
        assert [[play in line for play in reversed(plays)] for line in said] == [
            [True, False],
            [False, True],
        ], "each is named once"
        assert [*(tmp_path / "shared").rglob("*.hdf5")] == [], "nobody there would remove it"
        assert max(told["ended_ago_s"] for told in handler.results) < years, "the site takes years"
        assert waiting() == set(plays) and len(files()) == 2
        old = outbox.get(plays[0])
        assert old is not None and old.unknown_at is not None
        assert Outbox(tmp_path / "o").get(plays[0]) == old, "counted from the first time"
        outbox.put(replace(old, unknown_at=time.time() - KEPT_DONE_S - 1))
        until(lambda: waiting() == {plays[1]})
        assert files() == {f"{plays[1]}.hdf5"}
        assert plays[0] in said[2] and "was removed" in said[2]
        handler.file = "here"
        until(lambda: not waiting())
        assert files() == set() and len(said) == 3
        until(lambda: sync.trouble is None)
    finally:
        sync.close()
