"""Loading: `ready` after warm-up only, and reloading by drain and swap."""

from __future__ import annotations

import pytest

from robot_stack.errors import PolicyError
from robot_stack.policy_client import PolicyClient
from tests.policy_server.served import HANG_S, observed, until


@pytest.fixture
def weights(tmp_path):
    """What the policy adds to each action: which weights answered."""
    path = tmp_path / "weights"
    path.write_text("0")
    return path


def reloaded(line) -> int:
    reply = line.ask("reload", {"policy": "analytic"})
    assert reply.kind == "reloaded", reply.body
    return reply.body["generation"]


def test_ready_means_loaded_and_run_once(serve, endpoint, weights, tmp_path):
    go, sampled = tmp_path / "go", tmp_path / "sampled"
    weights.write_text(f"wait {go} 0")
    server = serve("--offset-file", weights, "--sampled", sampled, ready=False)
    server.listening()
    client = PolicyClient(endpoint, timeout_s=HANG_S)
    health = client.ask("health")
    assert not health["ready"]
    assert "loading analytic" in health["detail"]
    with pytest.raises(PolicyError) as error:
        client.open()
    assert error.value.code == "not_ready"
    with pytest.raises(PolicyError, match="not ready within") as error:
        client.wait_ready(0.2)
    assert error.value.code == "not_ready"
    assert not sampled.exists()
    go.touch()
    client.wait_ready(HANG_S)
    assert sampled.exists()
    client.open()
    client.close()


def test_a_decoder_is_run_once_before_its_first_session_opens(serve, endpoint, tmp_path):
    sampled = tmp_path / "sampled"
    serve("--sampled", sampled)
    sampled.unlink()
    with PolicyClient(endpoint, decoder="ema", timeout_s=HANG_S):
        assert sampled.exists()
    sampled.unlink()
    with PolicyClient(endpoint, decoder="ema", timeout_s=HANG_S):
        assert not sampled.exists()


def test_a_policy_that_cannot_be_loaded_ends_the_server(serve, weights):
    weights.write_text("broken")
    assert serve("--offset-file", weights, ready=False).ended() != 0


def test_sessions_go_on_with_the_new_generation_and_no_answer_mixes(serve, weights, wire, tmp_path):
    serve("--offset-file", weights)
    go = tmp_path / "go"
    robot, admin = wire(), wire()
    session = robot.open()
    weights.write_text(f"wait {go} 1000")
    asked = admin.send("reload", {"policy": "analytic"})
    until(lambda: robot.ask("health").body["policies"]["analytic"]["reloading"], "the second loads")
    # The first one serves while the second loads.
    robot.infer(session, observed(1).state)
    reply = robot.receive()
    assert (reply.body["generation"], reply.arrays["actions"][0, 2]) == (1, 1)
    # One runs and one waits when the second is ready: the running one ends with the first.
    running = robot.infer(session, observed(2, takes_s=1.0).state)
    waiting = robot.infer(session, observed(3).state)
    go.touch()
    seen = {}
    for _ in range(2):
        reply = robot.receive()
        seen[reply.id] = (reply.body["generation"], reply.arrays["actions"][0, 2])
    assert seen == {running: (1, 2), waiting: (2, 1003)}
    swapped = admin.receive()
    assert (swapped.id, swapped.kind, swapped.body["generation"]) == (asked, "reloaded", 2)
    assert robot.ask("health").body["policies"]["analytic"]["generation"] == 2


def test_chunks_of_old_weights_are_no_priors_for_new_ones(serve, endpoint, weights, wire):
    serve("--offset-file", weights)
    with PolicyClient(endpoint, decoder="temporal_ensemble", timeout_s=HANG_S) as client:
        old = client.infer(observed(0))
        blended = client.infer(observed(100), previous_chunk=old.chunk_id, consumed=1)
        assert 0 < blended.actions[0, 2] < 100
        weights.write_text("1000")
        assert reloaded(wire()) == 2
        new = client.infer(observed(100), previous_chunk=blended.chunk_id, consumed=1)
        assert (new.generation, new.actions[0, 2]) == (2, 1100)
        assert new.chunk_id not in (old.chunk_id, blended.chunk_id)
        # Both are the first chunk of their weights; nothing confuses them.
        stale = client.infer(observed(100), previous_chunk=old.chunk_id, consumed=1)
        assert stale.actions[0, 2] == 1100
        again = client.infer(observed(0), previous_chunk=new.chunk_id, consumed=1)
        assert 1000 < again.actions[0, 2] < 1101


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("broken", "load_failed", "no such weights"),
        ("wider", "contract_mismatch", "arm/6"),
        ("longer", "contract_mismatch", "horizon: served is 8, the new one has 9"),
    ],
)
def test_what_cannot_follow_does_not(serve, weights, wire, text, code, words):
    serve("--offset-file", weights)
    line = wire()
    session = line.open()
    weights.write_text(text)
    reply = line.ask("reload", {})
    assert (reply.kind, reply.body["code"]) == ("error", code)
    assert words in reply.body["text"]
    line.infer(session, observed(5).state)
    assert line.receive().arrays["actions"][0, 2] == 5
    weights.write_text("7")
    assert reloaded(line) == 2


def test_a_session_opened_while_draining_is_of_the_new_generation(serve, weights, wire):
    serve("--offset-file", weights)
    busy, late, admin = wire(), wire(), wire()
    session = busy.open()
    weights.write_text("10")
    busy.infer(session, observed(1, takes_s=1.0).state)
    until(lambda: admin.ask("health").body["policies"]["analytic"]["running"], "it runs")
    admin.send("reload", {})
    until(lambda: busy_generation_follows(late), "drained or draining")
    opened = late.open()
    late.infer(opened, observed(1).state)
    reply = late.receive()
    assert reply.body["generation"] >= opened.body["generation"]
    assert reply.arrays["actions"][0, 2] == 1 + 10 * (reply.body["generation"] - 1)


def busy_generation_follows(line) -> bool:
    policy = line.ask("health").body["policies"]["analytic"]
    return policy["reloading"] or policy["generation"] == 2
