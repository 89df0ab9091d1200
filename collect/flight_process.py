"""The flight recorder's program, one a station: `python -m collect.flight_process`."""

from __future__ import annotations

import argparse
import sys

from collect.flight_recorder import FlightConfig, run
from collect.session import recorder_config
from robot_stack.config import load_station
from robot_stack.errors import RobotStackError

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Dump the last half minute on any fault.")
    parser.add_argument("--station-file", required=True)
    options = parser.parse_args(arguments)
    try:
        station = load_station(options.station_file)
        recorded = recorder_config(station)
        run(
            FlightConfig(
                station=station.station,
                directory=recorded.directory,
                robots=recorded.robots,
                cameras=recorded.cameras,
            )
        )
    except RobotStackError as error:
        print(f"flight recorder: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
