"""`robot-stack demo franka` end to end: every program that takes part, for one episode each way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from robot_stack.episode import Episode
from robot_stack.types import CommandMode, Source
from tests.worlds.conftest import ROOT

ADDRESS = f"127.{os.getpid() % 200 + 40}.{os.getpid() // 200 % 250}.9"


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_pick_and_place_by_twists_and_by_gello_is_recorded_and_replayed(tmp_path: Path) -> None:
    station = tmp_path / "station.yaml"
    text = (ROOT / "configs" / "franka_virtual.yaml").read_text()
    station.write_text(text.replace("127.0.0.2", ADDRESS))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "robot_stack.cli", "demo", "franka", "--json"),
            *("--episodes", "2", "--station", str(station), "--directory", str(tmp_path)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=230,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr  # 1 also for frames that a busy machine dropped
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["episodes"] == 2
    assert result["successes"] == 2
    assert result["hands"] == ["twists", "gello"]
    assert result["replayed"]["ok"]
    assert result["replayed"]["off_recording_rms_rad"] < 0.03
    assert (tmp_path / "demo_franka.png").stat().st_size > 1000
    modes = []
    for path in result["files"]:
        with Episode.open(Path(path)) as episode:
            assert episode.metadata.success is True
            assert episode.cameras == ("cam_shoulder", "cam_wrist")
            assert np.isfinite(episode.action_sent).all()
            log = episode.log("arm")
            taught = log[log["source"] == Source.DEMO]
            modes.append(int(np.bincount(taught["mode"]).argmax()))
            # The cube was lifted, and lies on the square in the end.
            env = episode.env_state
            assert env[:, 2].max() > 0.08
            assert np.abs(env[-1, :2] - env[-1, 7:9]).max() < 0.03
    assert modes == [CommandMode.EE_POSE, CommandMode.JOINT_POSITION]
