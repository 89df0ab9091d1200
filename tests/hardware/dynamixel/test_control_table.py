"""The control tables against the independent ones in dynamixel_sdk's wheel."""

from __future__ import annotations

import math
import re
from pathlib import Path

import dynamixel_easy_sdk
import numpy as np
import pytest

from hardware.dynamixel import control_table as ct
from robot_stack.errors import DeviceError

FILES = Path(dynamixel_easy_sdk.__file__).parent / "control_table"
# Aliases of the SDK for whole indirect blocks: no registers of their own.
ALIASES = re.compile(r"indirect_(address|data)_(read|write)")


def sections(path: Path) -> dict[str, list[list[str]]]:
    found: dict[str, list[list[str]]] = {}
    for line in path.read_text().splitlines():
        if line.startswith("["):
            rows = found.setdefault(line.strip("[]"), [])
        elif line.strip():
            rows.append(line.split("\t"))
    return {name: rows[1:] for name, rows in found.items()}


def snake(name: str) -> str:
    name = name.replace("Secondary(Shadow) ID", "Secondary ID")
    return name.lower().replace(" ", "_").replace("-", "_")


@pytest.mark.parametrize("number", sorted(ct.MODELS))
def test_addresses_and_sizes_match_the_sdk(number: int) -> None:
    table = ct.MODELS[number]
    listed = dict(
        line.split("\t") for line in (FILES / "dynamixel.model").read_text().splitlines()[1:]
    )
    name = listed[str(number)]
    assert name == table.model.lower().replace("-", "_") + ".model"
    theirs = {
        snake(row[2]): (int(row[0]), int(row[1]))
        for row in sections(FILES / name)["control table"]
        if not ALIASES.match(snake(row[2]))
    }
    ours = {name: (r.address, r.size) for name, r in table.registers.items()}
    assert set(theirs) - set(ours) == set()
    assert {name: ours[name] for name in theirs} == theirs
    # What they leave out: they list the first indirect register only.
    assert all(name.startswith("indirect_") for name in set(ours) - set(theirs))


@pytest.mark.parametrize("number", sorted(ct.MODELS))
def test_units_match_the_sdk(number: int) -> None:
    table = ct.MODELS[number]
    parts = sections(FILES / (table.model.lower().replace("-", "_") + ".model"))
    kind = {row[0]: row[1] for row in parts["type info"]}
    assert int(kind["value_of_zero_radian_position"]) == ct.CENTER_TICKS == 2048
    units = {row[0]: row for row in parts["unit info"]}
    velocity = float(units["Present Velocity"][1])
    assert math.isclose(velocity, ct.VELOCITY_UNIT_RAD_S, rel_tol=1e-3)
    for name, row in units.items():
        assert table[snake(name)].signed is (row[3] == "signed")


@pytest.mark.parametrize("number", sorted(ct.MODELS))
def test_rows_are_sound(number: int) -> None:
    table = ct.MODELS[number]
    taken: dict[int, str] = {}
    for name, row in table.registers.items():
        assert name == row.name
        assert row.minimum <= row.default <= row.maximum
        assert row.eeprom is (row.address < 64)
        assert row.access == f"{'EEPROM' if row.address < 64 else 'RAM'} r{'w' * row.writable}"
        for byte in range(row.address, row.address + row.size):
            assert byte not in taken, f"{name} overlaps {taken.get(byte)}"
            taken[byte] = name
        for value in (row.minimum, row.default, row.maximum):
            assert row.unpack(row.pack(value)) == value
    assert table["model_number"].default == number
    assert table.has_current is (number in (1020, 1120))


def test_conversions() -> None:
    assert ct.ticks_to_rad(2048) == 0.0
    assert ct.ticks_to_rad(4096) == pytest.approx(math.pi)
    assert ct.rad_to_ticks([0.0, math.pi / 2, -math.pi]).tolist() == [2048, 3072, 0]
    ticks = np.arange(-5000, 9000, dtype=np.int32)
    assert (ct.rad_to_ticks(ct.ticks_to_rad(ticks)) == ticks).all()
    assert ct.current_to_ma(200) == pytest.approx(538.0)
    assert ct.velocity_to_rad_s(131) == pytest.approx(3.1416, abs=1e-3)


def test_says_what_exists() -> None:
    with pytest.raises(DeviceError, match="XM430-W350"):
        ct.model_by_name("AX-12")
    with pytest.raises(DeviceError, match="present_load"):
        ct.model_by_name("XL430-W250")["present_current"]
