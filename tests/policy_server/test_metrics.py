"""Metrics: what happened is what is counted, over ZeroMQ and over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from robot_stack.policy_client import PolicyClient
from server.policy.metrics import Metrics
from tests.policy_server.served import HANG_S, observed


def values(text: str) -> dict[str, float]:
    """Prometheus' text as {sample: value}."""
    rows = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in rows}


def test_a_histogram_counts_up_and_labels_are_escaped():
    metrics = Metrics()
    metrics.describe("took_seconds", "histogram", "time", (0.1, 1.0))
    metrics.describe("asked_total", "counter", "requests")
    for seconds in (0.05, 0.1, 0.5, 7.0):
        metrics.observe("took_seconds", seconds, policy='a"b\\c\n')
    metrics.count("asked_total", 12_345_678)
    found = values(metrics.text())
    label = 'policy="a\\"b\\\\c\\n"'
    assert found == {
        f'took_seconds_bucket{{{label},le="0.1"}}': 2,
        f'took_seconds_bucket{{{label},le="1"}}': 3,
        f'took_seconds_bucket{{{label},le="+Inf"}}': 4,
        f"took_seconds_sum{{{label}}}": pytest.approx(7.65),
        f"took_seconds_count{{{label}}}": 4,
        "asked_total": 12_345_678,
    }


def test_what_happened_is_counted(serve, wire):
    server = serve("--metrics-port", 0)
    page = server.listening()[-1]
    line = wire()
    opened = line.open()
    for fails in (0, 0, 1):
        line.infer(opened, observed(1, fails=fails).state)
        line.receive()
    line.ask("nonsense")
    over_zmq = values(line.ask("metrics").body["text"])
    with urllib.request.urlopen(page, timeout=HANG_S) as reply:
        assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        over_http = values(reply.read().decode())
    for found in (over_zmq, over_http):
        assert found['policy_requests_total{policy="analytic",outcome="ok"}'] == 2
        assert found['policy_requests_total{policy="analytic",outcome="internal"}'] == 1
        assert found['policy_faults_total{code="unknown_request"}'] == 1
        assert found['policy_batch_size_count{policy="analytic"}'] == 3
        assert found['policy_reply_seconds_count{policy="analytic"}'] == 2
        assert found["policy_sessions"] == 1
        assert found["policy_server_ready"] == 1
        assert found["process_resident_memory_bytes"] > 1 << 24
    with urllib.request.urlopen(page.replace("metrics", "healthz"), timeout=HANG_S) as reply:
        assert json.load(reply)["ready"]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(page.replace("metrics", "../etc/passwd"), timeout=HANG_S)


def test_health_says_503_before_ready(serve, endpoint, tmp_path):
    weights, go = tmp_path / "weights", tmp_path / "go"
    weights.write_text(f"wait {go} 0")
    server = serve("--metrics-port", 0, "--offset-file", weights, ready=False)
    page = server.listening()[-1]
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(page.replace("metrics", "healthz"), timeout=HANG_S)
    go.touch()
    PolicyClient(endpoint, timeout_s=HANG_S).wait_ready(HANG_S)
    with urllib.request.urlopen(page.replace("metrics", "healthz"), timeout=HANG_S) as reply:
        assert reply.status == 200
