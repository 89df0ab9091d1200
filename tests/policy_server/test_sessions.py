"""Sessions: what a client gets back, who owns what, what dies at a reset, what is refused."""

from __future__ import annotations

import dataclasses
import signal
import time

import numpy as np
import pytest

from robot_stack.errors import PolicyError
from robot_stack.policy_client import PolicyClient, PolicyObservation
from tests.policy_server.served import HANG_S, HORIZON, OBSERVATIONS, observed, until


@pytest.fixture
def client(serve, endpoint):
    serve()
    with PolicyClient(endpoint, timeout_s=HANG_S) as opened:
        yield opened


def test_a_chunk_answers_its_observation(client):
    assert client.contract.rows == HORIZON - OBSERVATIONS + 1
    before = time.monotonic_ns()
    reply = client.infer(observed(7))
    after = time.monotonic_ns()
    assert reply.actions.dtype == np.float64
    assert reply.actions[:, 2:].tolist() == [[7.0 + row] * 4 for row in range(client.contract.rows)]
    assert reply.observation_t_ns == 200
    timing = dataclasses.astuple(reply.timing)
    assert list(timing) == sorted(timing)
    assert before <= timing[0]
    assert timing[-1] <= after
    assert reply.offset_ns == 0  # one computer, one clock
    assert client.infer(observed(8), previous_chunk=reply.chunk_id).chunk_id != reply.chunk_id


def test_images_arrive_whole(serve, endpoint, wire):
    serve("--pixels", 200)
    image = np.arange(OBSERVATIONS * 200 * 200 * 3, dtype=np.uint8).reshape(
        OBSERVATIONS, 200, 200, 3
    )
    with PolicyClient(endpoint, timeout_s=HANG_S) as client:
        observation = PolicyObservation(np.array([1, 2]), observed(0).state, {"cam": image})
        assert client.infer(observation).actions[0, -1] == image.sum(dtype=np.int64)


def test_only_the_newest_waiting_request_of_a_session_is_answered(serve, wire):
    serve()
    line = wire()
    opened = line.open()
    first = line.infer(opened, observed(1, takes_s=0.4).state)
    others = [line.infer(opened, observed(tag).state) for tag in (2, 3, 4)]
    replies = {reply.id: reply for reply in (line.receive() for _ in range(4))}
    assert replies[first].kind == "chunk"
    assert [replies[n].body.get("code") for n in others] == ["superseded", "superseded", None]
    assert replies[others[-1]].arrays["actions"][0, 2] == 4


def test_the_client_never_sees_what_was_superseded(client):
    client.request(observed(1, takes_s=0.3))
    client.request(observed(2))
    last = client.request(observed(3))
    tags = []
    while not tags or tags[-1][0] != last:
        reply = client.poll(HANG_S)
        assert reply is not None
        tags.append((reply.id, reply.actions[0, 2]))
    assert [tag for _, tag in tags] == [1, 3]


def test_a_chunk_in_flight_dies_at_a_reset(serve, wire, endpoint):
    serve()
    line = wire()
    opened = line.open()
    running = line.infer(opened, observed(1, takes_s=0.5).state)
    waiting = line.infer(opened, observed(2).state)
    reset = line.send("reset", {"session": opened.body["session"]})
    replies = {reply.id: reply for reply in (line.receive() for _ in range(3))}
    assert replies[waiting].body["code"] == "stale_epoch"
    assert replies[running].body["code"] == "stale_epoch"
    assert replies[reset].body["epoch"] == opened.body["epoch"] + 1
    old = line.infer(opened, observed(3).state)
    refused = line.receive()
    assert (refused.id, refused.body["code"]) == (old, "stale_epoch")
    line.infer(replies[reset], observed(4).state)
    assert line.receive().arrays["actions"][0, 2] == 4


def test_the_client_gets_nothing_from_before_a_reset(client):
    client.request(observed(1, takes_s=0.3))
    client.reset()
    number = client.request(observed(2))
    reply = client.poll(HANG_S)
    assert reply is not None
    assert (reply.id, reply.actions[0, 2]) == (number, 2)


def test_the_client_drops_what_had_arrived_before_its_reset(client, wire):
    client.request(observed(1))
    line = wire()
    answered = 'policy_requests_total{policy="analytic",outcome="ok"} 1'
    until(lambda: answered in line.ask("metrics").body["text"], "the chunk is on its way")
    client.reset()
    assert client.poll() is None
    assert client.infer(observed(2)).actions[0, 2] == 2


def test_a_reset_lets_the_decoder_forget(serve, endpoint):
    """A temporal ensemble blends with the chunk before, unless a reset came between."""
    serve()
    with PolicyClient(endpoint, decoder="temporal_ensemble", timeout_s=HANG_S) as client:
        first = client.infer(observed(0))
        blended = client.infer(observed(100), previous_chunk=first.chunk_id, consumed=1)
        assert 0 < blended.actions[0, 2] < 100
        client.reset()
        fresh = client.infer(observed(100), previous_chunk=first.chunk_id, consumed=1)
        assert fresh.actions[0, 2] == 100


def test_a_request_past_its_deadline_is_shed_before_the_worker_is_free(serve, wire):
    serve()
    busy, late = wire(), wire()
    first, second = busy.open(), late.open()
    busy.infer(first, observed(1, takes_s=1.0).state)
    until(lambda: late.ask("health").body["policies"]["analytic"]["running"], "it runs")
    late.infer(second, deadline_ms=30.0)
    shed, done = late.receive(), busy.receive()
    assert shed.body["code"] == "expired"
    assert shed.body["timing"]["replied_ns"] < done.body["timing"]["done_ns"]
    late.infer(second, deadline_ms=60_000.0)
    assert late.receive().kind == "chunk"


def test_what_waits_for_one_policy_is_decoded_together(serve, wire):
    serve("--batch", 3)
    lines = [wire() for _ in range(5)]
    sessions = [line.open() for line in lines]
    lines[0].infer(sessions[0], observed(0, takes_s=0.8).state)
    until(lambda: lines[1].ask("health").body["policies"]["analytic"]["running"], "it runs")
    for tag in range(1, 5):
        lines[tag].infer(sessions[tag], observed(tag).state)
    replies = [line.receive() for line in lines]
    assert [reply.arrays["actions"][0, 2] for reply in replies] == [0, 1, 2, 3, 4]
    started = [reply.body["timing"]["started_ns"] for reply in replies]
    sizes = sorted(started.count(time_ns) for time_ns in set(started))
    assert sizes == [1, 1, 3]


def test_a_failing_inference_is_its_clients_alone(serve, wire):
    serve()
    lines = [wire() for _ in range(4)]
    sessions = [line.open() for line in lines]
    lines[0].infer(sessions[0], observed(0, takes_s=0.5).state)
    until(lambda: lines[1].ask("health").body["policies"]["analytic"]["running"], "it runs")
    for line, session, fails in zip(lines[1:], sessions[1:], (0, 1, 2), strict=True):
        line.infer(session, observed(5, fails=fails).state)
    replies = [line.receive() for line in lines]
    assert [reply.kind for reply in replies] == ["chunk", "chunk", "error", "error"]
    assert [reply.body["code"] for reply in replies[2:]] == ["internal", "internal"]
    assert "OSError: the GPU fell off the bus" in replies[2].body["text"]
    assert "NaN" in replies[3].body["text"]
    lines[2].infer(sessions[2], observed(6).state)
    assert lines[2].receive().kind == "chunk"


def test_another_client_cannot_use_a_session(serve, wire):
    serve()
    owner, other = wire(), wire()
    opened = owner.open()
    mine = other.open()
    naming = {"session": opened.body["session"], "epoch": 0}
    other.infer(mine, **naming)
    texts = {other.receive().body["text"]}
    for kind in ("reset", "close"):
        reply = other.ask(kind, naming)
        assert reply.body["code"] == "unknown_session"
        texts.add(reply.body["text"])
    texts.add(other.ask("reset", {"session": "never opened"}).body["text"])
    assert len(texts) == 1  # nothing tells which sessions exist
    owner.infer(opened, observed(1).state)
    assert owner.receive().body["epoch"] == 0


def test_sessions_are_bounded_and_expire(serve, wire):
    serve("--sessions", 2, "--idle-s", 1.5)
    line = wire()
    kept = line.open()
    line.open()
    reply = line.ask("open", {"decoder": {"name": "receding_horizon"}})
    assert reply.body["code"] == "overloaded"
    assert "2 sessions" in reply.body["text"]

    def one_left() -> bool:
        line.infer(kept)
        assert line.receive().kind == "chunk"
        return line.ask("health").body["sessions"] == 1

    until(one_left, "the idle one is gone, the one in use is not")
    assert line.ask("close", {"session": kept.body["session"]}).kind == "closed"
    line.infer(kept)
    assert line.receive().body["code"] == "unknown_session"


def test_several_policies_by_name(serve, endpoint):
    serve("--name", "left", "--name", "right")
    with PolicyClient(endpoint, policy="right", timeout_s=HANG_S) as client:
        assert client.contract.name == "right"
        assert client.infer(observed(3)).actions[0, 2] == 3
    with pytest.raises(PolicyError, match="served: left, right") as error:
        PolicyClient(endpoint, timeout_s=HANG_S).open()
    assert error.value.code == "unknown_policy"


def test_a_contract_that_differs_is_refused_in_words(serve, endpoint):
    serve()
    contract = PolicyClient(endpoint, timeout_s=HANG_S).hello()
    offered = dataclasses.replace(contract, embodiment="crane", control_dt_ns=10_000_000)
    with pytest.raises(PolicyError) as error:
        PolicyClient(endpoint, offered=offered, timeout_s=HANG_S).open()
    assert error.value.code == "contract_mismatch"
    assert "'crane'" in str(error.value)
    assert "control_dt_ns" in str(error.value)
    with PolicyClient(endpoint, offered=contract, timeout_s=HANG_S) as client:
        client.infer(observed(1))


@pytest.mark.parametrize(
    ("decoder", "options", "code", "words"),
    [
        ("bid", {}, "decoder_refused", "contrast"),
        ("beams", {}, "decoder_refused", "no decoder is called 'beams'"),
        ("receding_horizon", {"depth": 3}, "decoder_refused", "depth"),
    ],
)
def test_a_decoder_that_cannot_be_is_refused_in_words(
    serve, endpoint, decoder, options, code, words
):
    serve()
    with pytest.raises(PolicyError, match=words) as error:
        PolicyClient(endpoint, decoder=decoder, options=options, timeout_s=HANG_S).open()
    assert error.value.code == code
    health = PolicyClient(endpoint, timeout_s=HANG_S).wait_ready(HANG_S)
    assert health["sessions"] == 0


def test_an_observation_of_another_shape_is_refused_in_words(client):
    narrow = dataclasses.replace(observed(1), state=np.zeros((OBSERVATIONS, 5), np.float32))
    missing = observed(1)
    missing.state[0, 3] = np.nan
    extra = dataclasses.replace(observed(1), images={"cam": np.zeros((2, 4, 4, 3), np.uint8)})
    for observation, words in ((narrow, r"\(2, 5\)"), (missing, "NaN"), (extra, "image.cam")):
        with pytest.raises(PolicyError, match=words) as error:
            client.infer(observation)
        assert error.value.code == "bad_observation"
    client.infer(observed(1))


def test_a_dead_server_is_named_in_time(endpoint):
    began = time.monotonic()
    with pytest.raises(PolicyError, match="nobody takes requests") as error:
        PolicyClient(endpoint, timeout_s=0.3).open()
    assert error.value.code == "unreachable"
    assert time.monotonic() - began < HANG_S


def test_a_silent_server_is_named_in_time(serve, endpoint):
    server = serve()
    client = PolicyClient(endpoint, timeout_s=HANG_S)
    client.open()
    client.timeout_s = 0.3
    server.signal(signal.SIGSTOP)
    try:
        client.request(observed(1))
        began = time.monotonic()
        with pytest.raises(PolicyError, match="did not answer") as error:
            client.poll(HANG_S)
        assert time.monotonic() - began < HANG_S / 2
        assert error.value.code == "timeout"
        assert client.poll() is None
    finally:
        server.signal(signal.SIGCONT)
        client.close()


def test_after_a_restart_the_client_is_told_and_can_begin_again(serve, endpoint):
    server = serve()
    with PolicyClient(endpoint, timeout_s=HANG_S) as client:
        client.infer(observed(1))
        server.kill()
        serve()

        def told() -> bool:
            try:
                client.infer(observed(2))
            except PolicyError as error:
                return error.code == "unknown_session"
            return False

        until(told, "unknown_session")
        client.open()
        assert client.infer(observed(3)).actions[0, 2] == 3


def test_opening_again_gives_the_first_session_back(client):
    client.open()
    client.infer(observed(1))
    assert client.ask("health")["sessions"] == 1


def test_ending_answers_what_runs_and_refuses_what_waits(serve, wire):
    server = serve()
    line = wire()
    opened = line.open()
    running = line.infer(opened, observed(1, takes_s=0.6).state)
    waiting = line.infer(opened, observed(2).state)
    until(lambda: wire().ask("health").body["policies"]["analytic"]["waiting"], "it waits")
    server.process.terminate()
    replies = {reply.id: reply for reply in (line.receive(), line.receive())}
    assert replies[waiting].body["code"] == "draining"
    assert replies[running].kind == "chunk"
    assert server.ended() == 0
