"""The flight recorder's program, one a station: `python -m collect.flight_process`."""

from __future__ import annotations

import argparse
import sys

from collect.flight_recorder import FlightConfig, run
from collect.session import recorder_config
from robot_stack.config import Station, load_station
from robot_stack.errors import RobotStackError

__all__ = ["flight_config", "main"]


def flight_config(station: Station) -> FlightConfig:
    """What a station's flight recorder keeps: all robots' ticks, and its cameras' frames unless
    its ``recording.flight_cameras`` is false."""
    recorded = recorder_config(station)
    return FlightConfig(
        station=station.station,
        directory=recorded.directory,
        robots=recorded.robots,
        cameras=recorded.cameras if station.recording.flight_cameras else {},
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Dump the last half minute on any fault.")
    parser.add_argument("--station-file", required=True)
    options = parser.parse_args(arguments)
    try:
        run(flight_config(load_station(options.station_file)))
    except RobotStackError as error:
        print(f"flight recorder: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
