"""Names and codes of the keys and buttons that pedals and stop buttons send (Linux input ABI)."""

from __future__ import annotations

import difflib

from robot_stack.errors import ConfigError

__all__ = ["KEY_CODES", "key_code", "key_name"]


def _run(first: int, names: str) -> dict[str, int]:
    return {name: first + i for i, name in enumerate(names.split())}


KEY_CODES: dict[str, int] = {
    f"KEY_{name}": code
    for name, code in {
        **_run(1, "ESC 1 2 3 4 5 6 7 8 9 0 MINUS EQUAL BACKSPACE TAB"),
        **_run(16, "Q W E R T Y U I O P LEFTBRACE RIGHTBRACE ENTER LEFTCTRL"),
        **_run(30, "A S D F G H J K L SEMICOLON APOSTROPHE GRAVE LEFTSHIFT BACKSLASH"),
        **_run(44, "Z X C V B N M COMMA DOT SLASH RIGHTSHIFT KPASTERISK LEFTALT SPACE CAPSLOCK"),
        **_run(59, "F1 F2 F3 F4 F5 F6 F7 F8 F9 F10 NUMLOCK SCROLLLOCK"),
        **_run(71, "KP7 KP8 KP9 KPMINUS KP4 KP5 KP6 KPPLUS KP1 KP2 KP3 KP0 KPDOT"),
        **_run(87, "F11 F12"),
        **_run(96, "KPENTER RIGHTCTRL KPSLASH"),
        **_run(100, "RIGHTALT"),
        **_run(102, "HOME UP PAGEUP LEFT RIGHT END DOWN PAGEDOWN INSERT DELETE"),
        **_run(113, "MUTE VOLUMEDOWN VOLUMEUP POWER KPEQUAL"),
        **_run(119, "PAUSE"),
        **_run(128, "STOP"),
        **_run(163, "NEXTSONG PLAYPAUSE PREVIOUSSONG STOPCD"),
        **_run(183, "F13 F14 F15 F16 F17 F18 F19 F20 F21 F22 F23 F24"),
    }.items()
} | {
    f"BTN_{name}": code
    for name, code in {
        **_run(0x100, "0 1 2 3 4 5 6 7 8 9"),
        **_run(0x110, "LEFT RIGHT MIDDLE SIDE EXTRA"),
        **_run(0x120, "TRIGGER THUMB THUMB2 TOP TOP2 PINKIE BASE BASE2 BASE3 BASE4 BASE5 BASE6"),
        **_run(0x130, "SOUTH EAST C NORTH WEST Z TL TR TL2 TR2 SELECT START MODE THUMBL THUMBR"),
    }.items()
}
_NAMES = {code: name for name, code in KEY_CODES.items()}


def key_name(code: int) -> str:
    """``KEY_B`` for 48; the number itself for a key that has no name here."""
    return _NAMES.get(code, str(code))


def key_code(text: str) -> int:
    """The code of ``KEY_B``, ``b`` or ``48``; ConfigError names the nearest key."""
    name = text.strip().upper()
    for candidate in (name, f"KEY_{name}"):
        if candidate in KEY_CODES:
            return KEY_CODES[candidate]
    if name.isdigit() and 0 < int(name) <= 0x2FF:
        return int(name)
    close = difflib.get_close_matches(name, KEY_CODES, 1) or difflib.get_close_matches(
        f"KEY_{name}", KEY_CODES, 1
    )
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigError(
        f"no key is called {text!r}{hint} (`robot-stack stop-device --list` shows what a device "
        "sends; a key without a name can be given as its number)"
    )
