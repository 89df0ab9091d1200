"""What a servo bus answers: one reading of all servos, and who is there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hardware.dynamixel.control_table import MODELS, TICKS_PER_REV

__all__ = ["UNKNOWN_TICKS", "BusState", "PingResult", "unwrap_ticks"]

UNKNOWN_TICKS = int(np.iinfo(np.int32).min)


@dataclass(frozen=True, slots=True)
class PingResult:
    """What a servo says of itself. `alert`: its hardware error register is not zero."""

    model_number: int
    firmware: int
    alert: bool = False

    @property
    def model(self) -> str:
        """The model's name, or its number where the control table is not known here."""
        table = MODELS.get(self.model_number)
        return table.model if table else f"model {self.model_number}"


@dataclass(frozen=True, slots=True)
class BusState:
    """One reading of all servos; read-only vectors over the bus's `ids`.

    t_ns            monotonic time at which the last byte of the read instruction left (hand-over
                    to the kernel plus its time on the wire): servos sample then or later, within
                    the duration of the answer. Of the last attempt, when there were several.
    position_ticks  int32; UNKNOWN_TICKS for a servo that has never answered
    velocity_raw    int32, 0.229 rpm
    current_raw     int16, 2.69 mA; for XL430 and XC430 the load in 0.1 %
    age_s           float64; 0 for values of this reading, else how much older than `t_ns` they
                    are, inf for a servo that has never answered
    alert           bool; the hardware error register of that servo is not zero
    missing         ids that did not answer this time
    """

    t_ns: int
    position_ticks: npt.NDArray[np.int32]
    velocity_raw: npt.NDArray[np.int32]
    current_raw: npt.NDArray[np.int16]
    age_s: npt.NDArray[np.float64]
    alert: npt.NDArray[np.bool_]
    missing: tuple[int, ...]


def unwrap_ticks(
    ticks: npt.NDArray[np.integer], reference: npt.NDArray[np.integer] | npt.NDArray[np.floating]
) -> npt.NDArray[np.int32]:
    """`ticks` shifted by whole turns to lie within half a turn of `reference` (same shape).

    A servo forgets full turns when it loses power or enters position mode; the joint has not
    moved, only its count is 4096 off.
    """
    turns = np.rint((np.asarray(reference) - ticks) / TICKS_PER_REV).astype(np.int32)
    unwrapped: npt.NDArray[np.int32] = (ticks + turns * TICKS_PER_REV).astype(np.int32)
    return unwrapped
