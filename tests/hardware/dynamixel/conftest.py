"""Virtual buses for tests, each in a child process that ends with its test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hardware.dynamixel.process import BusProcess, spawn

VX300S = {1: "XM540-W270", 2: "XM540-W270", 3: "XM540-W270", 4: "XM540-W270", 5: "XM540-W270",
          6: "XM540-W270", 7: "XM540-W270", 8: "XM430-W350", 9: "XM430-W350"}  # fmt: skip

StartBus = Callable[..., BusProcess]


def servo_rows(models: dict[int, str], **options: Any) -> list[dict[str, Any]]:
    """Descriptions of servos for `spawn`."""
    return [{"id": servo_id, "model": model, **options} for servo_id, model in models.items()]


@pytest.fixture
def start_bus(tmp_path: Path) -> Iterator[StartBus]:
    """A function that starts one bus (arguments of VirtualBus; `servos` default: a vx300s)."""
    with ExitStack() as stack:
        count = 0

        def start(servos: list[dict[str, Any]] | None = None, **options: Any) -> BusProcess:
            nonlocal count
            count += 1
            directory = tmp_path / str(count)
            directory.mkdir()
            rows = servos if servos is not None else servo_rows(VX300S)
            return stack.enter_context(spawn([{"servos": rows, **options}], directory))

        yield start
