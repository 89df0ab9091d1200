"""How long each stage of a chunk took, from the capture of its observation to the first motion."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from rich.table import Table

__all__ = ["STAGES", "LatencyLog", "percentiles"]

# stage -> what it spans
STAGES = {
    "capture": "observation captured -> request sent",
    "send": "-> received by the policy server",
    "queue": "-> inference begins",
    "infer": "-> chunk ready",
    "reply": "-> received by the runner",
    "actuate": "-> first of its targets on the robot's bus",
    "total": "observation captured -> first of its targets on the robot's bus",
}


@dataclass(slots=True)
class LatencyLog:
    """Milliseconds by stage, one value a chunk; ``actuate`` and ``total`` only of chunks in use."""

    ms: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in STAGES})

    def add(self, **spans_ns: int) -> None:
        """Append one chunk's stages, in ns."""
        for name, span in spans_ns.items():
            self.ms[name].append(span / 1e6)

    def summary(self) -> dict[str, dict[str, float]]:
        """p50 and p99 in ms of every stage that was seen."""
        return {name: percentiles(values) for name, values in self.ms.items() if values}

    def table(self) -> Table:
        """The histogram as a table for a terminal."""
        table = Table(title="latency of the policy's chunks, ms")
        table.add_column("stage", no_wrap=True)
        table.add_column("span")
        for heading in ("p50", "p90", "p99", "max", "chunks"):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, values in self.ms.items():
            if values:
                shown = [*np.percentile(values, [50, 90, 99]), max(values)]
                table.add_row(
                    name, STAGES[name], *(f"{value:.1f}" for value in shown), str(len(values))
                )
        return table


def percentiles(values: list[float]) -> dict[str, float]:
    """p50 and p99, rounded to microseconds where ``values`` are ms."""
    p50, p99 = np.percentile(values, [50, 99])
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}
