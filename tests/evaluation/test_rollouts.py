"""Rollouts in lockstep: what the policy sees, what is executed, and that seeds stay apart."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from collect.evaluation.pusht import PushTWorld
from collect.evaluation.rollouts import rollouts
from collect.evaluation.world import WorldOptions, check_fit
from policies.build import build
from policies.decoding.table import make_decoder
from policies.hosted import Hosted
from policies.normalizer import Normalizer
from robot_stack.contract import CameraInput, Feature
from robot_stack.errors import PolicyError
from tests.evaluation.line_world import CONTRACT, Counter, LineWorld


def run(policy, worlds, seeds, decoder="receding_horizon", **options):
    return list(rollouts(Hosted(policy), make_decoder(decoder), worlds, seeds, **options))


@pytest.mark.parametrize("execute", [1, 3, 4, 6])
def test_chunks_join_without_a_gap_or_a_row_twice(execute):
    world = LineWorld()
    (score,) = run(Counter(), [world], [7], execute=execute)
    # The policy's x comes second in this world.
    assert [row[1] for row in world.done[7]] == list(range(20))
    assert score.steps == 20
    assert score.chunks == -(-20 // execute)
    assert np.array_equal(score.actions, world.done[7])


@pytest.mark.parametrize("execute", [1, 2, 4])
def test_the_policy_sees_the_last_observations_newest_last(execute):
    policy = Counter()
    run(policy, [LineWorld()], [5], execute=execute)
    first, second = policy.seen[0][0], policy.seen[1][0]
    assert first.tolist() == [[0, 5], [0, 5], [0, 5]]  # padded with the first
    assert second[:, 0].tolist() == [max(0, execute - 2), max(0, execute - 1), execute]
    assert (second[:, 1] == 5).all()


@pytest.mark.parametrize("execute", [1, 3])
def test_decoders_are_told_what_was_executed(execute):
    """EMA averages with the prior: where they are aligned, this policy's x stays what it is."""
    world = LineWorld()
    run(Counter(), [world], [7], "ema", execute=execute)
    assert [row[1] for row in world.done[7]] == pytest.approx(list(range(20)), abs=1e-4)
    # And the prior was there: noise in y is averaged away, and differs from one without.
    alone = LineWorld()
    run(Counter(), [alone], [7], execute=execute)
    first = slice(0, execute)
    averaged, raw = np.array(world.done[7])[:, 0], np.array(alone.done[7])[:, 0]
    assert averaged[first] == pytest.approx(raw[first], abs=1e-6)
    assert not np.allclose(averaged[execute:], raw[execute:], atol=1e-3)


def test_worlds_are_refilled_and_decoded_together():
    policy, worlds = Counter(), [LineWorld() for _ in range(3)]
    scores = run(policy, worlds, range(8))
    assert sorted(score.seed for score in scores) == list(range(8))
    assert max(policy.batches) == 3
    assert len(policy.batches) == 3 * 5  # 8 seeds in three rounds of five chunks


def test_a_seed_does_not_depend_on_which_others_run():
    alone, together = LineWorld(), [LineWorld() for _ in range(4)]
    run(Counter(), [alone], [6], noise=1.0)
    run(Counter(), together, [3, 4, 5, 6], noise=1.0)
    found = next(world for world in together if world.seed == 6)
    assert found.done[6] == pytest.approx(np.array(alone.done[6]), abs=1e-5)
    other = next(world for world in together if world.seed == 5)
    assert np.abs(np.array(other.done[5]) - alone.done[6])[:, 1].max() > 1e-3  # disturbed alike?
    for seed in (5, 6):
        run(Counter(), [alone], [seed])
    assert np.abs(np.array(alone.done[5]) - alone.done[6])[:, 0].max() > 1e-3  # the same samples?


def test_success_ends_an_episode_and_what_it_spared_counts_as_progress():
    told = []
    scores = run(Counter(), [LineWorld(goal=9)], [1, 2], progress=told.append)
    assert [(s.steps, s.success, s.max_reward) for s in scores] == [(9, True, 0.09)] * 2
    assert sum(told) == 2 * 20


def test_the_noise_of_a_step_follows_the_chunk_that_was_chosen():
    """With noise, x becomes i + the sum of factor * 1 (each step of the chunk is 1)."""
    world = LineWorld(steps=4)
    run(Counter(), [world], [3], noise=0.5)
    shift = np.array([row[1] for row in world.done[3]]) - np.arange(4)
    # The first action has its own share: the step that leads to it from the row before.
    assert np.diff(shift, prepend=0.0) == pytest.approx([shift[0]] * 4, abs=1e-5)
    assert 0.25 <= abs(shift[0]) <= 0.75


@pytest.mark.parametrize("execute", [0, 7])
def test_execute_is_bounded_by_the_chunk(execute):
    with pytest.raises(PolicyError, match=r"1\.\.6"):
        run(Counter(), [LineWorld()], [0], execute=execute)


def test_what_is_not_finite_is_refused_by_name():
    class Broken(Counter):
        def sample(self, condition, noise, **options):
            return super().sample(condition, noise, **options) * float("nan")

    with pytest.raises(PolicyError, match="seed 4, step 0"):
        run(Broken(), [LineWorld()], [4])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"embodiment": "arm"}, "embodiment"),
        ({"control_dt_ns": 20_000_000}, "control_dt_ns"),
        ({"state": (Feature("point/z", "m"),)}, "needs point/z"),
        ({"state": (Feature("point/x", "px"),)}, "point/x"),
        ({"action": CONTRACT.action[:1]}, "point/y"),
        ({"cameras": (CameraInput("top", 96, 96),)}, "needs top"),
    ],
)
def test_a_policy_for_another_world_is_refused(change, named):
    check_fit(CONTRACT, LineWorld())
    with pytest.raises(PolicyError, match=named):
        check_fit(dataclasses.replace(CONTRACT, **change), LineWorld())


def test_any_subset_in_any_order_fits():
    turned = dataclasses.replace(CONTRACT, state=LineWorld.state[::-1])
    check_fit(turned, LineWorld())

    class Turned(Counter):
        contract = dataclasses.replace(
            CONTRACT, state=(Feature("env/0", "1"), Feature("point/x", "m"))
        )

    policy = Turned()
    run(policy, [LineWorld(steps=5)], [0], execute=4)
    assert policy.seen[1][0].tolist() == [[-2, 2], [-3, 3], [-4, 4]]


def test_a_diffusion_policy_scores_alike_alone_and_in_a_batch():
    import torch

    torch.set_num_threads(1)
    names = {"agent/x", "agent/y", "env/0", "env/1"}
    contract = dataclasses.replace(
        CONTRACT,
        embodiment="pusht",
        state=tuple(f for f in PushTWorld.state if f.name in names),
        action=PushTWorld.action,
    )
    corners = np.array([[0.0] * 4, [512.0] * 4])
    torch.manual_seed(0)
    policy = build(
        {
            "policy": "diffusion",
            "network": {"name": "mlp", "width": 32},
            "sampler": {"name": "ddim", "steps": 3},
        },
        contract,
        Normalizer.fit(corners, corners[:, :2]),
    ).eval()
    worlds = [PushTWorld(WorldOptions()) for _ in range(3)]
    for world in worlds:
        world.steps = 24
    together = {s.seed: s for s in run(policy, worlds, range(3), "coherence")}
    alone = run(policy, worlds[:1], [2], "coherence")[0]
    assert together[2].actions == pytest.approx(alone.actions, abs=0.05)
    assert not np.allclose(together[1].actions, alone.actions, atol=5.0)
