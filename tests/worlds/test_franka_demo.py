"""`robot-stack demo franka` end to end: every program that takes part, for one episode each way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from robot_stack.episode import Episode
from robot_stack.types import CommandMode, Source
from tests.worlds.conftest import ROOT

ADDRESS = f"127.{os.getpid() % 200 + 40}.{os.getpid() // 200 % 250}.9"


PATIENCE_S = 240.0
MODES = {"twists": CommandMode.EE_POSE, "gello": CommandMode.JOINT_POSITION}


@pytest.mark.timeout(PATIENCE_S + 70)
@pytest.mark.parametrize(
    "hands",
    [
        pytest.param(["twists"], marks=pytest.mark.slow),
        pytest.param(["twists", "gello"], marks=pytest.mark.exhaustive),
    ],
)
def test_pick_and_place_is_taught_recorded_and_replayed(hands: list[str], tmp_path: Path) -> None:
    station = tmp_path / "station.yaml"
    text = (ROOT / "configs" / "franka_virtual.yaml").read_text()
    station.write_text(text.replace("127.0.0.2", ADDRESS))
    command = [
        *(sys.executable, "-m", "robot_stack.cli", "demo", "franka", "--json"),
        *("--episodes", str(len(hands)), "--station", str(station)),
        *("--directory", str(tmp_path)),
    ]
    with (tmp_path / "said").open("wb") as said:
        demo = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=said)
    try:
        output, _ = demo.communicate(timeout=PATIENCE_S)
    finally:  # it must not leave a station behind: told twice it ends everything at once
        for wait_s in (40.0, 10.0):
            if demo.poll() is None:
                demo.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    demo.wait(wait_s)
        demo.kill()
    assert demo.returncode == 0, (tmp_path / "said").read_text()
    result = json.loads(output.splitlines()[-1])
    assert result["ok"]
    assert result["episodes"] == result["successes"] == len(hands)
    assert result["hands"] == hands
    assert result["replayed"]["rows"] > 100
    assert result["replayed"]["off_recording_rms_rad"] < 0.03
    assert (tmp_path / "demo_franka.png").stat().st_size > 1000
    for hand, path in zip(hands, result["files"], strict=True):
        with Episode.open(Path(path)) as episode:
            assert episode.metadata.success is True
            assert episode.cameras == ("cam_shoulder", "cam_wrist")
            assert np.isfinite(episode.action_sent).all()
            log = episode.log("arm")
            taught = log[log["source"] == Source.DEMO]
            # A tick without a fresh command, on a busy machine, is in the joints' mode.
            assert np.bincount(taught["mode"]).argmax() == MODES[hand]
            # The cube was lifted, and lies on the square in the end.
            env = episode.env_state
            assert env is not None
            assert env[:, 2].max() > 0.08
            assert np.abs(env[-1, :2] - env[-1, 7:9]).max() < 0.03
