"""Results on disk: what is kept survives a kill, and other evaluations are not mixed in."""

from __future__ import annotations

import json

import numpy as np
import pytest

from collect.evaluation.report import summarise, table
from collect.evaluation.results import Result, ResultFile
from collect.evaluation.rollouts import Score, rollouts
from collect.evaluation.videos import worst, write_worst
from collect.evaluation.workers import batches
from policies.decoding.table import make_decoder
from policies.hosted import Hosted
from robot_stack.errors import EpisodeError
from tests.evaluation.line_world import Counter, LineWorld

HEADER = {"world": "line", "noise": 0.0}


def score(seed, reward=0.5, steps=3):
    return Score(seed, reward, reward >= 1.0, 2, np.arange(2.0 * steps).reshape(steps, 2) + seed)


def test_what_was_kept_is_there_after_a_kill(tmp_path):
    with ResultFile(tmp_path, HEADER) as file:
        file.keep("ema", score(4))
        file.keep("bid", score(5, 1.0))
    path = tmp_path / "episodes.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[-1][:20])  # killed while it wrote
    with ResultFile(tmp_path, HEADER) as file:
        assert file.results == {
            "ema": {4: Result("ema", 4, 0.5, False, 3, 2)},
            "bid": {5: Result("bid", 5, 1.0, True, 3, 2)},
        }
        assert np.array_equal(file.actions(file.results["ema"][4]), score(4).actions)
        file.keep("ema", score(6))
    assert path.read_bytes().startswith(whole)
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 4


def test_results_of_something_else_are_refused(tmp_path):
    with (
        ResultFile(tmp_path, HEADER),
        pytest.raises(EpisodeError, match="another evaluation writes"),
    ):
        ResultFile(tmp_path, HEADER)
    with pytest.raises(EpisodeError, match=r"noise was 0\.0, is now 1\.0"):
        ResultFile(tmp_path, {**HEADER, "noise": 1.0})
    (tmp_path / "episodes.jsonl").write_text("no JSON\n")
    with pytest.raises(EpisodeError, match="is no evaluation's"):
        ResultFile(tmp_path, HEADER)


def test_a_summary_compares_over_the_seeds_that_both_have():
    def results(decoder, rewards):
        return {s: Result(decoder, s, r, r >= 1.0, 10, 2) for s, r in rewards.items()}

    summary = summarise(
        {
            "receding_horizon": results("receding_horizon", {1: 0.2, 2: 0.4, 3: 0.6, 9: 1.0}),
            "bid": results("bid", {1: 0.3, 2: 0.6, 3: 1.0, 7: 0.0}),
        }
    )
    bid = summary["results"]["bid"]
    assert bid["mean_max_reward"] == pytest.approx(0.475)
    assert bid["success_rate"] == 0.25
    assert bid["ci80"][0] < 0.475 < bid["ci80"][1]
    assert summary["paired_p"] == {"bid": pytest.approx(2 / 8)}
    difference = summary["paired_difference"]["bid"]
    assert difference["mean"] == pytest.approx(0.7 / 3)
    assert difference["seeds"] == 3
    assert list(table(summary, "").columns[0].cells) == ["receding_horizon", "bid"]


def test_the_worst_are_failures_with_the_lowest_reward():
    results = [
        Result("ema", 1, 0.1, True, 9, 1),
        Result("ema", 2, 0.9, False, 9, 1),
        Result("ema", 3, 0.2, False, 9, 1),
    ]
    assert [result.seed for result in worst(results, 2)] == [3, 2]


def test_videos_show_the_executed_actions_once_more(tmp_path):
    import av

    world = LineWorld()
    with ResultFile(tmp_path, HEADER) as file:
        for found in rollouts(Hosted(Counter()), make_decoder("ema"), [world], [1, 2]):
            file.keep("ema", found)
        again = LineWorld()
        (path,) = write_worst(again, file, file.results, 1)
    assert again.done[1] == world.done[1]
    with av.open(str(path)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        assert video.streams.video[0].average_rate == 10
    assert len(frames) == 21
    assert frames[0].shape == (16, 32, 3)


@pytest.mark.parametrize("draws", [1, 15, 30, 1000])
@pytest.mark.parametrize("count", [0, 1, 7, 300])
def test_batches_hold_every_seed_once_and_give_each_worker_one(draws, count):
    made = batches("bid", list(range(count)), draws, 2)
    assert [seed for batch in made for seed in batch.seeds] == list(range(count))
    if count > 1:
        assert len(made) >= 2
    for batch in made:
        assert len(batch.seeds) <= batch.worlds <= 64
        assert draws * batch.worlds <= max(300, 8 * draws)
