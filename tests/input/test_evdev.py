"""Input devices from the kernel's bytes: presses, repeats, torn reads, unplugging, names."""

from __future__ import annotations

import os
import re
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hardware.input.evdev import InputDevice, find_nodes, list_nodes
from hardware.input.keys import KEY_CODES, key_code, key_name
from hardware.input.pedal import PedalEvents
from robot_stack.errors import ConfigError
from tests.input.wire import KEY_B, KEY_C, SPACE, Button, event, key

HEADER = Path("/usr/include/linux/input-event-codes.h")


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"waited 30 s for {what}"
        time.sleep(0.005)


@pytest.fixture
def button(tmp_path: Path) -> Iterator[Button]:
    button = Button(tmp_path / "button")
    yield button
    button.close()


def open_device(path: Path, *keys: int) -> InputDevice:
    device = InputDevice(str(path), frozenset(keys))
    assert device.read() == []
    assert device.connected
    return device


def codes(device: InputDevice) -> list[tuple[int, bool]]:
    return [(e.code, e.down) for e in device.read()]


def test_press_repeat_release(button: Button) -> None:
    button.plug()
    with open_device(button.path) as device:
        before = time.monotonic_ns()
        button.press()
        (press,) = device.read()
        assert (press.code, press.down) == (SPACE, True)
        assert before <= press.t_ns <= time.monotonic_ns()
        assert device.down == {SPACE}
        button.send(key(SPACE, 2) + key(SPACE, 2))
        assert device.read() == [], "auto-repeat is no new press"
        button.press()
        assert device.read() == [], "what is down cannot go down"
        button.release()
        assert codes(device) == [(SPACE, False)]
        assert device.down == set()
        assert device.read() == []


def test_only_the_named_keys_count(button: Button) -> None:
    button.plug()
    with open_device(button.path, KEY_B) as device:
        button.press(KEY_C)
        button.press(KEY_B)
        assert codes(device) == [(KEY_B, True)]
        assert device.down == {KEY_B}


def test_events_torn_across_reads(button: Button) -> None:
    button.plug()
    data = key(SPACE, 1) + key(KEY_B, 1) + key(SPACE, 0)
    with open_device(button.path) as device:
        seen = []
        for byte in data:
            button.send(bytes([byte]))
            seen += codes(device)
        assert seen == [(SPACE, True), (KEY_B, True), (SPACE, False)]


def test_more_events_than_one_read_takes(button: Button) -> None:
    button.plug()
    with open_device(button.path) as device:
        button.send((key(SPACE, 1) + key(SPACE, 0)) * 100)
        seen = []
        while events := codes(device):
            seen += events
        assert seen == [(SPACE, True), (SPACE, False)] * 100


def test_dropped_events_are_left_out_until_the_next_report(button: Button) -> None:
    button.plug()
    with open_device(button.path) as device:
        button.send(event(0, 3, 0) + event(1, KEY_B, 1) + event(0, 0, 0) + key(SPACE, 1))
        assert codes(device) == [(SPACE, True)]


def test_other_event_types_are_ignored(button: Button) -> None:
    button.plug()
    with open_device(button.path) as device:
        button.send(event(2, SPACE, 1) + event(4, 4, 0x70007) + event(3, 0, 1) + event(0, 0, 0))
        assert device.read() == []


def test_unplugged_and_plugged_in_again(button: Button, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InputDevice, "RETRY_S", 0.0)
    device = InputDevice(str(button.path))
    assert device.read() == []
    assert not device.connected
    assert "not plugged in" in device.trouble
    button.plug()
    assert device.read() == []
    assert device.connected
    assert device.trouble == ""
    button.press()
    assert codes(device) == [(SPACE, True)]
    button.pull()
    assert device.read() == []
    assert not device.connected
    assert "unplugged" in device.trouble
    assert device.down == set()
    button.plug()
    assert device.read() == []
    button.press()
    assert codes(device) == [(SPACE, True)]
    device.close()


def test_a_terminal_that_hangs_up_is_unplugged() -> None:
    master, slave = os.openpty()
    tty.setraw(slave)
    with open_device(Path(os.ttyname(slave))) as device:
        os.write(master, key(SPACE, 1))
        until(lambda: codes(device) == [(SPACE, True)], "the press to cross the pty")
        os.close(slave)
        os.close(master)
        assert device.read() == []
        assert not device.connected


def test_a_file_is_no_input_device(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(key(SPACE, 1))
    with InputDevice(str(tmp_path / "file")) as device:
        assert device.read() == []
        assert "is not an input device" in device.trouble


def make_sysfs(root: Path) -> tuple[Path, Path]:
    """Three nodes as the kernel shows them: two of one pedal (keys; volume only) and a mouse."""
    sysfs, dev = root / "sys", root / "dev"
    dev.mkdir()
    for number, name, bitmap in (
        (2, "PCsensor FootSwitch", "1000000000000 0"),  # bit 112 in the second word
        (10, "PCsensor FootSwitch", "1000000000000"),  # KEY_B
        (3, "Logitech Mouse", "70000 0 0 0 0"),  # BTN_LEFT, RIGHT, MIDDLE
        (4, "Lid Switch", "0"),
    ):
        device = sysfs / f"event{number}" / "device"
        (device / "capabilities").mkdir(parents=True)
        (device / "name").write_text(name + "\n")
        (device / "capabilities" / "key").write_text(bitmap + "\n")
        (dev / f"event{number}").touch()
    return sysfs, dev


def test_nodes_are_found_by_name_and_keys(tmp_path: Path) -> None:
    sysfs, dev = make_sysfs(tmp_path)
    nodes = list_nodes(sysfs, dev)
    assert [(node.path.name, node.name, set(node.keys)) for node in nodes] == [
        ("event2", "PCsensor FootSwitch", {112}),
        ("event3", "Logitech Mouse", {0x110, 0x111, 0x112}),
        ("event10", "PCsensor FootSwitch", {KEY_B}),
    ]

    def found(device: str, *keys: int) -> list[str]:
        return [path.name for path in find_nodes(device, frozenset(keys), sysfs, dev)]

    assert found("pcsensor footswitch") == ["event2", "event10"]
    assert found("PCsensor FootSwitch", KEY_B, KEY_C) == ["event10"]
    assert found("PCsensor FootSwitch", KEY_C) == []
    assert found("nothing") == []
    assert found(str(dev / "event3")) == ["event3"]
    assert found(str(dev / "event99")) == []


def test_key_names() -> None:
    assert key_code("KEY_B") == key_code("b") == key_code(" key_b ") == key_code("48") == 48
    assert key_code("BTN_TRIGGER") == 0x120
    assert key_name(48) == "KEY_B"
    assert key_name(700) == "700"
    for wrong in ("KEY_SPCE", "", "9999", "-3"):
        with pytest.raises(ConfigError, match="no key is called"):
            key_code(wrong)
    with pytest.raises(ConfigError, match="did you mean 'KEY_SPACE'"):
        key_code("spce")


@pytest.mark.skipif(not HEADER.exists(), reason="needs linux-libc-dev")
def test_key_codes_are_the_kernels() -> None:
    kernel = {
        name: int(value, 0)
        for name, value in re.findall(
            r"^#define\s+((?:KEY|BTN)_\w+)\s+(0x[0-9a-fA-F]+|\d+)", HEADER.read_text(), re.M
        )
    }
    assert {name: kernel[name] for name in KEY_CODES} == KEY_CODES


def test_pedal_presses_become_words(button: Button) -> None:
    button.plug()
    with PedalEvents(str(button.path), {"KEY_B": "start", "c": "stop"}) as pedal:
        assert pedal.poll() == []
        assert pedal.connected
        button.send(key(KEY_B, 1) + key(KEY_B, 2) + key(KEY_B, 0) + key(SPACE, 1) + key(KEY_C, 1))
        assert [event.action for event in pedal.poll()] == ["start", "stop"]
        assert pedal.poll() == []


def test_a_pedal_without_keys_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no keys"):
        PedalEvents("pedal", {})
