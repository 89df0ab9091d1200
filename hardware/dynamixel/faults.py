"""What can go wrong between a computer and its servos, by order and repeatable from a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

__all__ = ["Faults"]


@dataclass(slots=True)
class Faults:
    """Faults of one line. Rates are probabilities per packet, 0..1.

    `drop_rate` loses whole packets, `corrupt_rate` flips one bit of a packet, both in both
    directions; `delay_ms` holds every answer back; `noise_bytes` puts that many random bytes
    before every answer.
    """

    seed: int = 0
    drop_rate: float = 0.0
    corrupt_rate: float = 0.0
    delay_ms: float = 0.0
    noise_bytes: int = 0
    dropped: int = 0
    corrupted: int = 0
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    @property
    def quiet(self) -> bool:
        """Whether packets pass untouched."""
        return not (self.drop_rate or self.corrupt_rate or self.noise_bytes)

    def reseed(self, seed: int) -> None:
        """Start the same sequence of faults again."""
        self.seed = seed
        self._random.seed(seed)

    def through(self, packet: bytes) -> bytes:
        """What of a packet comes out at the other end; empty when it is lost."""
        if self.drop_rate and self._random.random() < self.drop_rate:
            self.dropped += 1
            return b""
        if self.corrupt_rate and self._random.random() < self.corrupt_rate:
            self.corrupted += 1
            damaged = bytearray(packet)
            damaged[self._random.randrange(len(packet))] ^= 1 << self._random.randrange(8)
            packet = bytes(damaged)
        return packet

    def noise(self) -> bytes:
        """Random bytes to go before an answer."""
        return self._random.randbytes(self.noise_bytes) if self.noise_bytes else b""
