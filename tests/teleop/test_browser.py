"""The page's process and the Teleoperator together: what is held, let go of, late or lost, judged
by the targets that come out."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from hardware.teleop.browser_sessions import IN_FLIGHT, MAX_JUNK
from robot_stack.errors import DeviceError
from robot_stack.interfaces import Teleoperator
from robot_stack.records import frame_record, ring_path
from robot_stack.shared_memory import RingWriter
from robot_stack.types import CommandMode, Difference, Lifecycle
from tests.teleop.browser_rig import HANG_S, HOME, STATION, Bench, write_station

STALE_S = 0.4  # as the bench's station file has it


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    directory = tmp_path_factory.mktemp("browser")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBOT_STACK_RUNTIME", str(directory / "shm"))
        with Bench(directory) as bench:
            yield bench


@pytest.fixture
def bench(shared: Bench) -> Iterator[Bench]:
    shared.clear()
    shared.until(lambda: "nobody controls" in (shared.teleop.waiting() or ""), "a free page")
    yield shared
    shared.clear()


def test_it_is_a_teleoperator_of_poses(bench: Bench) -> None:
    teleop: Teleoperator = bench.teleop
    assert teleop.mode is CommandMode.EE_POSE
    assert bench.url in (teleop.waiting() or ""), "it says where to go"
    assert bench.run(0.1) == []


def test_hands_move_the_arm_from_where_it_is(bench: Bench) -> None:
    bench.moving((1.0, 0, 0, 0, 0, 0))
    assert bench.teleop.waiting() is None
    np.testing.assert_allclose(bench.readings[0][1], HOME)
    steps = np.diff([target[0] for _, target in bench.readings])
    assert steps.min() >= 0 and steps.max() < 0.25 * 0.06  # full speed, and no leap
    np.testing.assert_allclose(bench.pose[1:], HOME[1:], atol=1e-9)
    made = [t_ns for t_ns, _ in bench.readings]
    assert made == sorted(made)


def test_gripper_and_speed(bench: Bench) -> None:
    person = bench.moving()
    assert bench.pose[7] == HOME[7], "nobody asked for it"
    still = {"gripper": 0.0, "speed": 0.0, "twist": [1, 1, 1, 0, 0, 0]}
    bench.push(person, lambda: bench.pose[7] == 0.0, "the gripper closes", **still)
    bench.run(0.2)
    before = bench.pose.copy()
    bench.run(0.2)
    np.testing.assert_allclose(bench.pose, before, err_msg="speed 0 % is none")
    bench.until(lambda: person.status["gripper"] == 0.0, "the page is told the opening")


def test_nothing_moves_before_control_is_taken(bench: Bench) -> None:
    person = bench.person()
    person.hands = {"deadman": True, "twist": [1, 0, 0, 0, 0, 0], "speed": 1.0}
    assert bench.run(0.3) == []
    assert person.status["control"] == "none"


def test_a_switch_that_was_held_when_control_came_has_to_be_let_go_of(bench: Bench) -> None:
    person = bench.person()
    person.hands = {"deadman": True, "twist": [1, 0, 0, 0, 0, 0], "speed": 1.0}
    person.silent = True
    person.say("take")
    bench.until(lambda: person.status["control"] == "you", "control")
    person.silent = False
    # The record by which control came has the switch free, so this press is a fresh one.
    bench.until(lambda: bench.readings, "a press after control came counts")
    # An engagement (after a stop) while it is held does not.
    bench.teleop.engage(bench.pose, time.monotonic_ns())
    assert bench.run(0.3) == []
    assert "let go" in (bench.teleop.waiting() or "")
    bench.push(person, lambda: bench.teleop.waiting() is None, "moves again")


def test_letting_go_ends_the_motion(bench: Bench) -> None:
    person = bench.moving()
    person.hands["deadman"] = False
    person.send()
    bench.until(lambda: bench.teleop.waiting() is not None, "let go of")
    assert bench.run(0.3) == []
    assert "dead-man switch" in (bench.teleop.waiting() or "")
    count = len(bench.readings)
    bench.push(person, lambda: len(bench.readings) > count, "held again")
    np.testing.assert_allclose(bench.readings[count][1], bench.readings[count - 1][1])


def test_a_tap_between_two_reads_is_seen(bench: Bench) -> None:
    person = bench.moving()
    count = bench.packets.count
    person.send(deadman=False)
    person.send(deadman=True)
    deadline = time.monotonic() + HANG_S
    while bench.packets.count < count + 2 and time.monotonic() < deadline:
        time.sleep(0.002)  # both lie in the ring before the next read
    time.sleep(0.011)
    bench.beat()
    assert bench.teleop.read() is None
    bench.until(lambda: bench.teleop.waiting() is None, "the press after it counts")


def test_silence_pauses_and_then_lets_go(bench: Bench) -> None:
    person = bench.moving((1.0, 0, 0, 0, 0, 0))
    person.silent = True
    bench.until(lambda: bench.teleop.waiting() is not None, "silence is noticed")
    assert "silent for 0.4 s" in (bench.teleop.waiting() or "")
    latest = bench.packets.latest()
    assert latest is not None
    last_ns = int(latest[1]["t_ns"])
    after = [(t_ns, target[0]) for t_ns, target in bench.readings if t_ns > last_ns]
    assert after[-1][0] - last_ns <= STALE_S * 1e9
    # Hands rest after 0.1 s and the arm stands 0.12 s later, at 0.25 m/s: 0.04 m, and one step.
    assert after[-1][1] - after[0][1] < 0.06
    assert bench.run(0.2) == []
    # Back in touch with the switch still held: that does not move it.
    person.silent = False
    assert bench.run(0.4) == []
    assert "let go" in (bench.teleop.waiting() or "")
    bench.push(person, lambda: bench.teleop.waiting() is None, "moves again")


def test_a_lost_socket_ends_control_and_motion(bench: Bench) -> None:
    person = bench.moving()
    bench.people.clear()
    person.socket.socket.shutdown(socket.SHUT_RDWR)  # no closing handshake
    bench.until(lambda: "nobody controls" in (bench.teleop.waiting() or ""), "gone")
    assert bench.run(0.2) == []
    person.close()


def test_late_packets_move_nothing_but_a_late_release_counts(bench: Bench) -> None:
    person = bench.moving()
    person.late_ms = 400.0
    bench.until(lambda: bench.teleop.waiting() is not None, "to be late is to be silent")
    count = bench.packets.count
    late = person.status["late"]
    bench.until(lambda: person.status["late"] > late + 5, "the page is told")
    assert person.status["round_trip_ms"] >= 400.0
    assert bench.packets.count == count
    person.hands["deadman"] = False
    bench.until(lambda: bench.packets.count > count, "it let go")
    records = bench.packets.since(count)[1]
    assert not any(record["deadman"] for record in records)


def test_doubled_and_overtaken_packets_are_dropped(bench: Bench) -> None:
    person = bench.moving()
    person.silent = True
    bench.run(0.05)
    packet = json.dumps(person.packet(deadman=True))
    newer = json.dumps(person.packet(deadman=False))
    count = bench.packets.count
    for text in (newer, packet, newer, packet):
        person.socket.send(text)
    person.say("leave")  # is heard after them
    bench.until(lambda: person.status["control"] == "none", "all were heard")
    assert bench.packets.count == count + 2  # the newer one, and that control went
    first, records = bench.packets.since(count)
    assert first == count and [int(r["deadman"]) for r in records] == [0, 0]
    assert [int(r["grant"]) for r in records][1] == -1


def test_one_controls_and_others_watch_and_stop(bench: Bench) -> None:
    bench.moving()
    other = bench.person()
    other.hands = {"deadman": True, "twist": [0, 0, -1, 0, 0, 0], "speed": 1.0}
    other.say("take")
    bench.until(lambda: other.errors, "a refusal")
    assert "controls; it is free when" in other.errors[0] == other.status["refusal"]
    assert other.status["control"] == "other"
    assert (bench.pose[2], bench.flag.value) == (HOME[2], 0)
    other.say("stop")
    bench.until(lambda: other.stopped, "an answer")
    assert other.stopped == [["arms"]]
    assert bench.flag.value == 3 and "a page at 127.0.0.1" in bench.flag.reason
    bench.until(lambda: "STOP pressed" in (other.status["stop"] or ""), "the page says so")


def test_control_passes_on_when_it_is_given_up(bench: Bench) -> None:
    first = bench.moving()
    first.say("leave")
    bench.until(lambda: first.status["control"] == "none", "given up")
    other = bench.person()
    other.say("take")
    bench.until(lambda: other.status["control"] == "you", "taken")
    bench.until(lambda: first.status["control"] == "other", "told")
    bench.run(0.2)
    count = len(bench.readings)
    assert bench.run(0.2) == [], "the first one's switch is nobody's any more"
    twist = [0, 1, 0, 0, 0, 0]
    bench.push(other, lambda: len(bench.readings) > count + 5, "the other moves it", twist=twist)


def test_stop_by_post_needs_neither_control_nor_socket(bench: Bench) -> None:
    answer = httpx.post(f"{bench.url}/stop", headers={"Origin": bench.url}, timeout=HANG_S)
    assert answer.json() == {"groups": ["arms"]}
    assert bench.flag.value == 3
    bench.flag.clear()
    for origin in ("http://evil.example", "null"):
        refused = httpx.post(f"{bench.url}/stop", headers={"Origin": origin}, timeout=HANG_S)
        assert (refused.status_code, bench.flag.value) == (403, 0)


def test_the_page_says_what_the_robot_does(bench: Bench) -> None:
    person = bench.moving()
    seen = lambda: person.status["robots"][0]["command_age_ms"] is not None  # noqa: E731
    bench.push(person, lambda: seen() and person.status["following"], "command age")
    robot = person.status["robots"][0]
    assert (robot["name"], robot["lifecycle"], robot["trouble"]) == ("arm", "armed", None)
    assert 0 <= robot["command_age_ms"] < HANG_S * 1e3
    assert person.status["trouble"] is None
    assert person.status["round_trip_ms"] >= 0
    bench.tick["difference"] = Difference.WORKSPACE | Difference.VELOCITY
    bench.until(lambda: person.status["robots"][0]["limits"] == ["workspace wall"], "limits")
    person.hands["deadman"] = False
    bench.until(lambda: "hold the page's dead-man" in (person.status["waiting"] or ""), "waiting")
    bench.tick["lifecycle"] = Lifecycle.DISARMED
    bench.until(lambda: person.status["trouble"] == "arm: it is disarmed", "lifecycle")


def test_what_is_no_message_is_refused_and_moves_nothing(bench: Bench) -> None:
    person = bench.person()
    person.say("take")
    bench.until(lambda: person.status["control"] == "you", "control")
    person.silent = True
    count = bench.packets.count
    for values in (
        {"twist": [0, 0, 0, 0, 0]},
        {"twist": [2, 0, 0, 0, 0, 0]},
        {"twist": [float("nan"), 0, 0, 0, 0, 0]},
        {"twist": "north"},
        {"deadman": 1},
        {"gripper": 1.5},
        {"speed": -0.1},
        {"seq": -1},
        {"seq": 10**400},
        {"speed": 10**400},
        {"echo": 1e12},
        {"colour": "red"},
    ):
        person.send(**{"deadman": True, **values})
    bench.until(lambda: len(person.errors) == 12, "each is answered")
    assert bench.packets.count == count
    for text in ("", "{", "[]", "7", '{"kind": 3}', '{"kind": "juggle"}', "[" * 2000):
        person.socket.send(text)
    bench.until(lambda: len(person.errors) == 19, "each is answered")
    person.socket.send(b"\x00\xff")
    person.socket.send(b"\x00\xff")
    with pytest.raises(ConnectionClosed) as closed:
        bench.until(lambda: False, "thrown out")
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008
    assert MAX_JUNK == 20 and bench.packets.count == count + 1  # its control went
    bench.people.clear()
    bench.person()


def test_floods_and_giants_are_shown_the_door(bench: Bench) -> None:
    for text, repeat, code in (("x" * 4000, 1, 1009), ('{"kind": "leave"}', 1000, 1008)):
        with connect(f"ws{bench.url.removeprefix('http')}/control", origin=bench.url) as page:
            with pytest.raises(ConnectionClosed) as closed:
                for _ in range(repeat):
                    page.send(text)
                deadline = time.monotonic() + HANG_S
                while time.monotonic() < deadline:
                    page.recv(timeout=HANG_S)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == code
    bench.person()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts=st.lists(JSON.map(json.dumps) | st.text(max_size=50) | st.binary(), max_size=8))
def test_junk_leaves_the_page_alive_and_the_arm_alone(
    bench: Bench, texts: list[str | bytes]
) -> None:
    count = bench.packets.count
    with connect(f"ws{bench.url.removeprefix('http')}/control", origin=bench.url) as page:
        for text in texts:
            page.send(text)
        page.send('{"kind": "leave", "a": 1}')
        deadline = time.monotonic() + HANG_S
        while "unknown key" not in str(page.recv(timeout=HANG_S)):
            assert time.monotonic() < deadline
    assert bench.packets.count == count and bench.flag.value == 0


def test_pictures_are_the_newest_and_no_more_than_are_drawn(bench: Bench) -> None:
    ring = RingWriter(ring_path(STATION, "camera", "cam"), frame_record(160, 120), 8, {"fps": 30.0})
    image = np.zeros((120, 160, 3), np.uint8)

    def publish(number: int) -> None:
        ring.publish((time.monotonic_ns(), number, image))

    publish(0)
    with connect(f"ws{bench.url.removeprefix('http')}/video", origin=bench.url) as page:
        assert json.loads(page.recv(timeout=HANG_S)) == {"kind": "cameras", "names": ["cam"]}
        times = []

        def picture() -> None:
            data = page.recv(timeout=HANG_S)
            assert isinstance(data, bytes)
            line, _, jpeg = data.partition(b"\n")
            header = json.loads(line)
            assert header["camera"] == "cam" and header["large"] is True
            assert jpeg[:2] == b"\xff\xd8" and jpeg[-2:] == b"\xff\xd9"
            times.append(header["t"])

        picture()
        for number in range(1, IN_FLIGHT):
            publish(number)
            picture()
        for number in range(IN_FLIGHT, IN_FLIGHT + 5):  # nothing was drawn: none of these comes
            publish(number)
        with pytest.raises(TimeoutError):
            page.recv(timeout=0.3)
        publish(99)
        page.send('{"kind": "drawn"}')
        picture()
        assert times == sorted(set(times))
        assert times[-1] - times[-2] >= 300.0, "the newest of all"
        page.send('{"kind": "main", "camera": "nowhere"}')
        assert "no camera 'nowhere'" in str(page.recv(timeout=HANG_S))
    ring.close()


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROBOT_STACK_RUNTIME", str(tmp_path / "shm"))
    return tmp_path


def test_a_page_process_that_dies_is_started_again_and_control_is_taken_anew(
    directory: Path,
) -> None:
    with Bench(directory) as bench:
        bench.moving()
        url, pid = bench.url, bench.teleop.page.pid
        bench.people.clear()
        os.kill(pid, signal.SIGKILL)
        bench.until(lambda: "has ended" in (bench.teleop.waiting() or ""), "its death is noticed")
        count = len(bench.readings)
        bench.until(lambda: "nobody controls" in (bench.teleop.waiting() or ""), "served again")
        assert (bench.url, len(bench.readings)) == (url, count)
        assert bench.teleop.page.pid != pid
        bench.packets.reopen()
        bench.pose = HOME.copy()
        bench.moving()


def test_the_page_ends_with_its_teleoperator(directory: Path) -> None:
    program = (
        "import sys, time; from hardware.teleop.browser import PageProcess\n"
        "from hardware.teleop.browser_config import BrowserConfig\n"
        "page = PageProcess(sys.argv[1], 'arms', BrowserConfig(port=0)); page.start()\n"
        "print(page.pid, flush=True)\n"
        "time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(write_station(directory))],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + HANG_S
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "the page outlived the program that started it"
        time.sleep(0.02)


def test_a_port_in_use_is_said_so(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DeviceError, match=f"127.0.0.1:{port}.*choose another"):
            Bench(directory, port=port).__enter__()
