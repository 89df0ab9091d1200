"""`bench serve`: every peer answers, every byte counts, and a missed bar fails it."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import serve
from benchmarks._serving_peers import Payload, answer, checksum, payloads


def test_every_byte_and_the_order_count() -> None:
    stream = np.random.default_rng(0)
    arrays = [stream.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(3)]
    whole = checksum(arrays)
    assert checksum([arrays[1], arrays[0], arrays[2]]) != whole
    for array in arrays:
        for i in (0, 77, 191):
            array.reshape(-1)[i] ^= 1
            assert checksum(arrays) != whole
            array.reshape(-1)[i] ^= 1
    payload = Payload(np.zeros(14, np.float32), {"cam": arrays[0]}, whole)
    assert payload.answered_by(answer(arrays).astype(np.float32))
    assert not payload.answered_by(answer(arrays[:2]))


def test_sizes_are_those_of_the_comparison() -> None:
    assert [payloads(size)[0].bytes for size in serve.SIZES] == [56, 451_640, 3_686_456]


@pytest.mark.slow
def test_all_peers_answer_with_the_right_checksum() -> None:
    results = serve.measure(["small", "450KB"], requests=3, paced=2, rate=100.0)
    for found in (*results.values(), *(result["paced"] for result in results.values())):
        for name in ("native_ipc", "native_tcp", "openpi", "grpc"):
            assert 0 < found[f"{name}_us"] <= found[f"{name}_p99_us"]
        assert found["ratio_openpi"] > 0


def test_a_missed_bar_is_named() -> None:
    good = {"450KB": {"ratio_openpi": 0.35}, "3.7MB": {"ratio_openpi": 0.15}}
    assert serve.failures(good) == []
    assert "450KB" in serve.failures({**good, "450KB": {"ratio_openpi": 0.36}})[0]
    assert "3.7MB" in serve.failures({**good, "3.7MB": {"ratio_openpi": float("nan")}})[0]
    assert serve.failures({"small": {"ratio_openpi": 9.0}}) == []
