"""The parts of training: windows, average, schedule, what is read and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from collect.dataset.paths import episode_files
from collect.jpeg import decode, encode
from collect.resize import resize
from policies.training.config import (
    DataConfig,
    EmaConfig,
    OptimizerConfig,
    TrainConfig,
    load_config,
)
from policies.training.demonstrations import Demonstration, demonstrations
from policies.training.ema import Ema, decay
from policies.training.frames import FrameCache
from policies.training.optimizer import make_optimizer, rate_factor
from policies.training.prepare import fresh_policy, split
from policies.training.trainer import Trainer, action_error
from policies.training.windows import Windows, stream
from robot_stack.config import parse
from robot_stack.contract import CameraInput, Feature
from robot_stack.episode import (
    EpisodeMetadata,
    EpisodeSchema,
    EpisodeWriter,
    ImageLayout,
    RobotLayout,
    Row,
    relabel,
)
from robot_stack.errors import ConfigError, EpisodeError, PolicyError
from tests.policies.training_data import episodes, settings, training_file


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def walk(length: int, offset: float = 0.0, path: str = "a") -> Demonstration:
    """State i is i + offset, action i is 100 + i + offset."""
    rows = np.arange(length, dtype=np.float32)[:, None] + offset
    return Demonstration(
        path=Path(path),
        digest=path,
        embodiment="e",
        task="t",
        period_ns=100_000_000,
        state_features=(Feature("env/0", "px"),),
        action_features=(Feature("hand/x", "px"),),
        state=rows,
        action=rows + 100,
        begin=rows[0],
        first_row=0,
    )


def test_windows_repeat_the_ends_and_stay_in_their_episode() -> None:
    both = Windows(
        [walk(5), walk(3, 50, "b")], observations=2, horizon=4, first_action=1, pad_after=1
    )
    assert len(both) == 4 + 2
    batch = both.batch(np.arange(6))
    assert batch.state[:, :, 0].tolist() == [[0, 0], [0, 1], [1, 2], [2, 3], [50, 50], [50, 51]]
    assert (batch.action[:, :, 0] - 100).tolist() == [
        [0, 0, 1, 2],
        [0, 1, 2, 3],
        [1, 2, 3, 4],
        [2, 3, 4, 4],
        [50, 50, 51, 52],
        [50, 51, 52, 52],
    ]
    assert batch.mask.tolist() == [
        [False, True, True, True],
        [True] * 4,
        [True] * 4,
        [True, True, True, False],
        [False, True, True, True],
        [True, True, True, False],
    ]


def test_windows_of_act_reach_every_row() -> None:
    windows = Windows([walk(5)], observations=1, horizon=4, first_action=0, pad_after=3)
    batch = windows.batch(np.arange(len(windows)))
    assert batch.state[:, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert batch.mask[-1].tolist() == [True, False, False, False]
    assert batch.action[-1, :, 0].tolist() == [104] * 4


def test_an_episode_shorter_than_a_chunk_still_gives_a_window() -> None:
    windows = Windows([walk(2)], observations=2, horizon=8, first_action=1, pad_after=3)
    assert len(windows) == 1
    assert windows.batch(np.zeros(1, np.int64)).mask.sum() == 2


def test_stream_shuffles_whole_epochs() -> None:
    steps = [stream(10, 4, step, seed=3) for step in range(5)]
    drawn = np.concatenate(steps)
    assert sorted(drawn[:10]) == list(range(10)) == sorted(drawn[10:])
    assert drawn[:10].tolist() != drawn[10:].tolist()
    assert drawn[:10].tolist() != list(range(10))
    again = stream(10, 4, 2, seed=3)  # spans both epochs, and needs none of the steps before
    assert again.tolist() == steps[2].tolist()
    assert stream(10, 4, 2, seed=4).tolist() != again.tolist()


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.0), (1, 0.4053964424986395), (99, 0.9683772233983162), (10**9, 0.9999)],
)
def test_decay_of_the_average(step: int, expected: float) -> None:
    assert decay(step, EmaConfig()) == pytest.approx(expected, abs=1e-12)


def test_average_follows_the_weights() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    ema = Ema(model, EmaConfig())
    nn.init.constant_(model.weight, 3.0)
    ema.update(0)
    assert ema.model.weight.item() == 3.0
    nn.init.constant_(model.weight, 5.0)
    ema.update(1)
    assert ema.model.weight.item() == pytest.approx(3 * 0.40539644 + 5 * 0.59460356)


def test_learning_rate_warms_up_and_falls_as_a_cosine() -> None:
    config = OptimizerConfig(warmup_steps=10)
    assert [rate_factor(step, 110, config) for step in (0, 5, 10)] == [0, 0.5, 1]
    assert rate_factor(60, 110, config) == pytest.approx(0.5)
    assert rate_factor(35, 110, config) == pytest.approx(0.8535533905932737)
    assert rate_factor(109, 110, config) < 1e-3
    assert rate_factor(109, 110, OptimizerConfig(warmup_steps=10, schedule="constant")) == 1


def test_rates_and_decay_by_parameter() -> None:
    model = nn.ModuleDict({"images": nn.Linear(2, 2), "network": nn.Linear(2, 2)})
    optimizer = make_optimizer(
        model, OptimizerConfig(weight_decay=0.1, rates={"images.": 1e-5}, learning_rate=1e-3)
    )
    found = {
        (group["base"], group["weight_decay"], group["params"][0].ndim)
        for group in optimizer.param_groups
    }
    assert found == {(1e-5, 0.1, 2), (1e-5, 0.0, 1), (1e-3, 0.1, 2), (1e-3, 0.0, 1)}
    with pytest.raises(ConfigError, match=r"begins with picture\..*begin with images, network"):
        make_optimizer(model, OptimizerConfig(rates={"picture.": 1e-5}))


def test_split_is_by_episode_and_seed() -> None:
    made = [walk(3, path=str(i)) for i in range(20)]
    parts = split(made, 0.1, 0)
    assert len(parts.validation) == 2 and len(parts.train) == 18
    assert {one.path for one in parts.train}.isdisjoint(one.path for one in parts.validation)
    assert split(made, 0.1, 0) == parts != split(made, 0.1, 1)
    assert split(made, 0.0, 0).validation == ()
    with pytest.raises(EpisodeError, match="1 episodes are too few to hold 1 out"):
        split(made[:1], 0.1, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_action": 8}, "first_action 8 must lie in the horizon of 8 rows"),
        ({"execute": 8}, "from the newest observation on a chunk has only 7 rows"),
        ({"checkpoints": {"at": [61]}}, r"steps outside 1\.\.60: \[61\]"),
        ({"optimizer": {"betas": [0.9]}}, r"two numbers in \[0, 1\)"),
        ({"batchsize": 3}, "batchsize: unknown key; did you mean 'batch'"),
        ({"precision": "float64"}, "'float64' is not one of float32, bfloat16, float16"),
    ],
)
def test_a_wrong_training_file_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(training_file(tmp_path / "a.yaml", **changes))
    assert "a.yaml:" in str(caught.value)


@pytest.mark.parametrize("path", sorted(Path("configs/train").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_training_files_are_right(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert config.to_json() == load_config(path).to_json()


def test_state_by_name_in_the_order_asked(tmp_path: Path) -> None:
    files = episode_files([episodes(tmp_path / "data")])
    found = list(demonstrations(files, DataConfig(state=("env/2", "agent/y", "agent/x"))))
    assert [one.path for one in found] == files
    first = found[0]
    assert first.state_features == (
        Feature("env/2", "1"),
        Feature("agent/y", "px"),
        Feature("agent/x", "px"),
    )
    with h5py.File(files[0]) as file:
        np.testing.assert_array_equal(first.state[:, 0], np.float32(1.5))
        np.testing.assert_array_equal(first.state[:, 1:], file["observations/qpos"][:][:, ::-1])
        np.testing.assert_array_equal(first.action, file["action"][:])
    assert first.period_ns == 100_000_000 and first.embodiment == "pusht"
    with pytest.raises(EpisodeError, match=r"has no agent/z; .*agent/x, agent/y, env/0"):
        list(demonstrations(files, DataConfig(state=("agent/z",))))


def test_labels_leave_episodes_out(tmp_path: Path) -> None:
    files = episode_files([episodes(tmp_path / "data")])
    relabel(files[0], success=False)
    relabel(files[1], success=True)
    for labels, expected in (("all", 4), ("not_failure", 3), ("success", 1)):
        assert len(list(demonstrations(files, DataConfig(labels=labels)))) == expected


def recorded(path: Path, action: np.ndarray, seq: list[int] | None = None, **meta: Any) -> Path:
    """An episode of one robot with one JPEG camera whose frames repeat as ``seq`` says."""
    seq = seq or list(range(len(action)))
    schema = EpisodeSchema(
        (RobotLayout("hand", ("x",)),), {"cam": ImageLayout(32, 24)}, rate_hz=50.0, sim=True
    )
    writer = EpisodeWriter(path, schema, EpisodeMetadata(action={"names": ["hand/x"]}, **meta))
    for i, target in enumerate(action):
        picture = np.full((24, 32, 3), 10 * seq[i], np.uint8)
        t_ns = 10**9 + i * 20_000_000
        writer.append(
            Row(
                t_ns=t_ns,
                qpos=[float(i)],
                action=[target],
                images={"cam": encode(picture, 95)},
                frame_t_ns={"cam": t_ns},
                frame_seq={"cam": seq[i]},
            )
        )
    return writer.finalise()


def test_unknown_rows_at_the_ends_are_left_out(tmp_path: Path) -> None:
    nan = np.nan
    path = recorded(tmp_path / "episode_0.hdf5", np.array([nan, nan, 1, 2, 3, nan]))
    (found,) = demonstrations([path], DataConfig())
    assert found.first_row == 2
    assert found.action.tolist() == [[1], [2], [3]]
    assert found.state.tolist() == [[2], [3], [4]]
    hole = recorded(tmp_path / "episode_1.hdf5", np.array([1, nan, 3]))
    with pytest.raises(EpisodeError, match=r"episode_1.*unknown \(NaN\) in row 1"):
        list(demonstrations([hole], DataConfig()))


def test_episodes_of_two_kinds_are_refused(tmp_path: Path) -> None:
    one = episode_files([episodes(tmp_path / "data")])[0]
    other = recorded(tmp_path / "episode_9.hdf5", np.arange(5.0))
    with pytest.raises(EpisodeError, match=r"episode_9.*its embodiment is hand, that of episode_0"):
        list(demonstrations([one, other], DataConfig()))


def aloha_file(path: Path, compress: bool) -> None:
    """As tonyzhaozh/act and act-plus-plus write them."""
    rng = np.random.default_rng(1)
    pictures = np.stack([np.full((24, 32, 3), 20 * i, np.uint8) for i in range(6)])
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = True
        file["observations/qpos"] = rng.normal(0, 1, (6, 14))
        file["observations/qvel"] = rng.normal(0, 1, (6, 14))
        file["action"] = rng.normal(0, 1, (6, 14))
        if not compress:
            file["observations/images/top"] = pictures
            return
        file.attrs["compress"] = True
        data = [encode(picture, 95) for picture in pictures]
        width = max(map(len, data))
        rows = [np.frombuffer(one.ljust(width, b"\0"), np.uint8) for one in data]
        file["observations/images/top"] = np.stack(rows)
        file["compress_len"] = np.array([[len(one) for one in data]], np.float32)


@pytest.mark.parametrize("compress", [False, True])
def test_public_aloha_files_are_read(tmp_path: Path, compress: bool) -> None:
    path = tmp_path / "episode_0.hdf5"
    aloha_file(path, compress)
    config = DataConfig(state=("follower_right/gripper", "follower_left/waist"), rate_hz=25)
    (found,) = demonstrations([path], config)
    with h5py.File(path) as file:
        np.testing.assert_allclose(found.state, file["observations/qpos"][:][:, [13, 0]], rtol=1e-6)
        np.testing.assert_allclose(found.action, file["action"][:], rtol=1e-6)
    assert found.state_features[0] == Feature("follower_right/gripper", "fraction")
    assert found.action_features[7] == Feature("follower_right/waist", "rad")
    assert found.period_ns == 40_000_000
    cache = FrameCache(tmp_path / "frames", CameraInput("top", 12, 16), [found], decode, resize)
    seen = cache.pixels([found])(np.array([0, 5]))
    assert seen.shape == (2, 12, 16, 3)
    assert abs(int(seen[1, 6, 8, 0]) - 100) < 4


def test_an_aloha_file_of_another_shape_is_named(tmp_path: Path) -> None:
    path = tmp_path / "episode_0.hdf5"
    with h5py.File(path, "w") as file:
        file["observations/qpos"] = np.zeros((6, 7))
        file["action"] = np.zeros((6, 7))
    with pytest.raises(EpisodeError, match=r"qpos and action \(T, 14\), here are \(6, 7\)"):
        list(demonstrations([path], DataConfig()))


def test_frames_are_decoded_once_and_repeats_are_kept_once(tmp_path: Path) -> None:
    a = recorded(tmp_path / "episode_0.hdf5", np.array([np.nan, 1, 2, 3]), seq=[3, 3, 3, 5])
    b = recorded(tmp_path / "episode_1.hdf5", np.arange(3.0), seq=[7, 8, 8])
    found = list(demonstrations([a, b], DataConfig()))
    decoded: list[int] = []

    def count(data: bytes) -> Any:
        decoded.append(len(data))
        return decode(data)

    camera = CameraInput("cam", 24, 32)
    cache = FrameCache(tmp_path / "frames", camera, found, count, resize)
    assert len(decoded) == 4
    whole = cache.pixels(found)(np.arange(6))
    assert [round(int(one.max()) / 10) for one in whole] == [3, 3, 5, 7, 8, 8]
    assert [round(int(one.max()) / 10) for one in cache.pixels(found[1:])(np.arange(3))] == [
        7,
        8,
        8,
    ]
    FrameCache(tmp_path / "frames", camera, found, count, resize)
    assert len(decoded) == 4
    FrameCache(tmp_path / "frames", camera, found[1:], count, resize)
    assert len(decoded) == 6
    with pytest.raises(EpisodeError, match=r"episode_0.*has no camera 'top'; it has cam"):
        FrameCache(tmp_path / "frames", CameraInput("top", 24, 32), found, count, resize)


def trainer(tmp_path: Path, **changes: Any) -> Trainer:
    config = parse(TrainConfig, settings(**changes))
    files = episode_files([episodes(tmp_path / "data")])
    found = split(list(demonstrations(files, config.data)), config.validation.share, 0)

    def windows(chosen: tuple[Demonstration, ...]) -> Windows:
        return Windows(
            chosen,
            observations=config.observations,
            horizon=config.horizon,
            first_action=config.first,
            pad_after=config.reach,
        )

    return Trainer(
        config,
        fresh_policy(config, found.train),
        windows(found.train),
        tmp_path / "run",
        validation=windows(found.validation),
    )


def test_training_learns(tmp_path: Path) -> None:
    made = trainer(tmp_path, steps=400, log_every=20, checkpoints={"save_s": 1000})
    assert made.validation is not None
    before = action_error(made.ema.model, made.validation, made.config)
    first: list[float] = []
    made.tell = lambda step, values: first.append(values["train/loss"]) if step == 20 else None
    result = made.fit()
    assert result.finished and result.steps == 400
    assert result.values["train/loss"] < 0.6 * first[0]
    assert result.values["validation/action_mse"] < 0.5 * before
    assert action_error(made.ema.model, made.validation, made.config) == pytest.approx(
        result.values["validation/action_mse"]
    )


def test_a_full_disk_is_told_and_the_run_goes_on_after_it(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    last = tmp_path / "run" / "last"
    last.mkdir(parents=True)
    part = last / "state.safetensors.part"
    part.symlink_to("/dev/full")
    with pytest.raises(PolicyError, match=r"disk of .* is full; .* up to step 0: make room"):
        made.fit()
    part.unlink()
    assert made.fit().steps == 60


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    with torch.no_grad():
        next(made.policy.parameters()).fill_(torch.nan)
    with pytest.raises(PolicyError, match=r"the loss is nan at step 7; a lower optimizer"):
        made.fit()


def test_half_precision_needs_what_the_device_has(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="float16 needs a GPU; use bfloat16 or float32"):
        trainer(tmp_path, precision="float16")


def test_bfloat16_learns_too(tmp_path: Path) -> None:
    made = trainer(tmp_path, precision="bfloat16", steps=30)
    assert made.fit().values["train/loss"] < 1.5
    assert {p.dtype for p in made.policy.parameters()} == {torch.float32}


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    trainer(tmp_path / "a").fit()
    other = settings()["architecture"]
    other["network"]["width"] = 40
    (tmp_path / "b").mkdir()
    made = trainer(tmp_path / "b", architecture=other)
    made.run = tmp_path / "a" / "run"
    with pytest.raises(PolicyError, match="does not belong to this run or is damaged"):
        made.fit()
