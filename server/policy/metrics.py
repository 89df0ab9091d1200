"""Counters, gauges and histograms in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence

__all__ = ["Metrics", "resident_bytes"]

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
PAGE = 4096

Labels = tuple[tuple[str, str], ...]


def resident_bytes() -> int:
    """This process's memory in RAM."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * PAGE


class _Histogram:
    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value


class Metrics:
    """What a server counts. Written by one thread; ``text`` may be read by another."""

    def __init__(self) -> None:
        self._help: dict[str, tuple[str, str]] = {}
        self._bounds: dict[str, Sequence[float]] = {}
        self._counters: dict[tuple[str, Labels], float] = {}
        self._histograms: dict[tuple[str, Labels], _Histogram] = {}
        self._gauges: list[Callable[[], Mapping[tuple[str, Labels], float]]] = []

    def describe(self, name: str, kind: str, text: str, bounds: Sequence[float] = SECONDS) -> None:
        """``kind`` is counter, gauge or histogram; ``bounds`` are a histogram's."""
        self._help[name] = (kind, text)
        self._bounds[name] = bounds

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        key = (name, tuple(labels.items()))
        self._counters[key] = self._counters.get(key, 0) + amount

    def observe(self, name: str, value: float, **labels: str) -> None:
        key = (name, tuple(labels.items()))
        histogram = self._histograms.get(key)
        if histogram is None:
            histogram = self._histograms[key] = _Histogram(self._bounds[name])
        histogram.add(value)

    def gauges(self, read: Callable[[], Mapping[tuple[str, Labels], float]]) -> None:
        """``read`` is called for each text: {(name, labels): value}."""
        self._gauges.append(read)

    def text(self) -> str:
        values = dict(self._counters)
        for read in self._gauges:
            values.update(read())
        histograms = dict(self._histograms)
        lines = []
        for name, (kind, text) in self._help.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            lines += [
                f"{key}{_labels(at)} {v:.15g}" for (key, at), v in values.items() if key == name
            ]
            for (key, at), histogram in histograms.items():
                if key == name:
                    lines += _lines(name, at, histogram)
        return "\n".join(lines) + "\n"


def _lines(name: str, labels: Labels, histogram: _Histogram) -> list[str]:
    counts, total = list(histogram.counts), histogram.total
    lines, below = [], 0
    for bound, count in zip((*histogram.bounds, float("inf")), counts, strict=True):
        below += count
        text = "+Inf" if bound == float("inf") else f"{bound:g}"
        lines.append(f"{name}_bucket{_labels((*labels, ('le', text)))} {below}")
    lines.append(f"{name}_sum{_labels(labels)} {total:.9g}")
    lines.append(f"{name}_count{_labels(labels)} {below}")
    return lines


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    pairs = []
    for key, value in labels:
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        pairs.append(f'{key}="{escaped}"')
    return "{" + ",".join(pairs) + "}"
