"""Who controls, and which packets count: without sockets, over all kinds of packets and times."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware.teleop.browser_config import BrowserConfig
from hardware.teleop.browser_control import IDLE_S, Control, Hands, Page, PageClock, read_message
from hardware.teleop.browser_records import INPUT, INPUT_SLOTS
from robot_stack.config import parse
from robot_stack.errors import ConfigError
from robot_stack.shared_memory import Ring, RingWriter

SECOND = 10**9
STEPS = settings(max_examples=200, deadline=None)


class Desk:
    """Control at a clock that the test sets, and what came to the ring."""

    def __init__(self, path: Path) -> None:
        self.writer = RingWriter(path, INPUT, INPUT_SLOTS)
        self.ring = Ring(path)
        self.clock = PageClock()
        self.config = BrowserConfig(max_round_trip_s=0.3)
        self.control = Control(self.config, self.writer, self.clock)
        self.now_ns = 1000 * SECOND

    def close(self) -> None:
        self.ring.close()
        self.writer.close()

    def hands(self, seq: int, *, trip_s: float = 0.01, deadman: bool = True) -> Hands:
        """A packet that may be ``trip_s`` old."""
        echo = self.clock.ms(self.now_ns) - 50.0 - trip_s * 1e3
        return Hands(seq=seq, echo=echo, since=50.0, deadman=deadman, speed=1.0)

    def newest(self) -> tuple[int, int, int]:
        """Grant, number and switch of the newest record."""
        latest = self.ring.latest()
        assert latest is not None
        return tuple(int(latest[1][name]) for name in ("grant", "seq", "deadman"))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path / "input")
    yield desk
    desk.close()


def test_control_is_one_page_s_until_it_leaves_or_idles(desk: Desk) -> None:
    first, other = Page("a page at 10.0.0.1"), Page("a page at 10.0.0.2")
    assert desk.control.take(first, desk.now_ns) is None
    assert desk.newest() == (1, -1, 0)
    refusal = desk.control.take(other, desk.now_ns)
    assert refusal is not None and "10.0.0.1 controls" in refusal
    desk.now_ns += 8 * SECOND
    assert desk.control.hear(first, desk.hands(1), desk.now_ns)
    desk.now_ns += 8 * SECOND  # it held the switch 8 s ago
    assert desk.control.take(other, desk.now_ns) is not None
    desk.control.hear(first, desk.hands(2, deadman=False), desk.now_ns)
    desk.now_ns += round((IDLE_S - 8) * SECOND)
    assert desk.control.take(other, desk.now_ns) is None
    assert desk.newest() == (2, -1, 0)
    assert not desk.control.hear(first, desk.hands(3), desk.now_ns), "it has lost control"
    desk.control.leave(first, desk.now_ns)
    assert desk.control.holder is other
    desk.control.leave(other, desk.now_ns)
    assert desk.newest() == (-1, -1, 0)
    assert desk.control.take(first, desk.now_ns) is None
    assert desk.newest() == (3, -1, 0)


@STEPS
@given(
    packets=st.lists(
        st.tuples(
            st.integers(0, 12),  # number
            st.floats(-0.1, 1.0),  # how old it may be
            st.booleans(),
            st.booleans(),  # of the page that controls
        ),
        max_size=30,
    )
)
def test_only_fresh_packets_of_the_one_in_control_hold_the_switch(
    packets: list[tuple[int, float, bool, bool]],
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        desk = Desk(Path(directory) / "input")
        judge(desk, packets)
        desk.close()


def judge(desk: Desk, packets: list[tuple[int, float, bool, bool]]) -> None:
    one, other = Page("one"), Page("other")
    desk.control.take(one, desk.now_ns)
    highest = {one: -1, other: -1}
    for number, trip_s, deadman, of_one in packets:
        desk.now_ns += SECOND // 50
        page = one if of_one else other
        before = desk.writer.count
        went = desk.control.hear(
            page, desk.hands(number, trip_s=trip_s, deadman=deadman), desk.now_ns
        )
        new = number > highest[page]
        highest[page] = max(highest[page], number)
        late = max(0.0, trip_s) > 0.3
        if abs(trip_s - 0.3) > 1e-6:
            assert went == (of_one and new and (not late or not deadman))
        assert desk.writer.count == before + went
        if went:
            assert desk.newest() == (1, number, int(deadman))


def test_a_packet_from_the_future_is_none(desk: Desk) -> None:
    page = Page("one")
    desk.control.take(page, desk.now_ns)
    with pytest.raises(ConfigError, match="future"):
        desk.control.hear(page, desk.hands(1, trip_s=-0.5), desk.now_ns)
    assert page.seq == -1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        name: JSON | st.floats(-1, 1) | st.lists(st.floats(-2, 2), min_size=5, max_size=7)
        for name in ("seq", "echo", "since", "deadman", "twist", "gripper", "speed")
    },
)


@STEPS
@given(values=FIELDS | st.dictionaries(st.text(max_size=8), JSON))
def test_hands_are_whole_or_refused(values: dict[str, object]) -> None:
    try:
        kind, read = read_message(json.dumps({**values, "kind": "hands"}))
        hands = Hands.from_message(read)
    except ConfigError as error:
        assert str(error)
        return
    assert kind == "hands"
    assert len(hands.twist) == 6 and all(abs(value) <= 1.0 for value in hands.twist)
    numbers = [hands.seq, hands.echo, hands.since, hands.speed, hands.gripper or 0.0]
    assert all(math.isfinite(number) and number >= 0 for number in numbers)
    assert 0 <= hands.speed <= 1 and isinstance(hands.deadman, bool)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=200) | JSON.map(json.dumps))
def test_a_message_is_an_object_with_a_kind_or_refused(text: str) -> None:
    try:
        kind, values = read_message(text)
    except ConfigError:
        return
    assert isinstance(kind, str) and isinstance(values, dict)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": "0.0.0.0"}, "authenticate: true"),
        ({"host": "::"}, "authenticate: true"),
        ({"host": "192.168.1.7"}, "ssh -L 8730:localhost:8730"),
        ({"host": "lab-pc"}, "lets the network move the robot"),
        ({"certificate": "a.pem"}, "give both"),
        ({"stale_s": 5.0}, "out of range"),
        ({"motion": {"linear": 1.0}}, "did you mean 'linear_m_s'"),
    ],
)
def test_options_that_open_a_door_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(BrowserConfig, options, "teleop.options")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_the_loopback_needs_no_link(host: str) -> None:
    assert not parse(BrowserConfig, {"host": host}, "teleop.options").authenticate
