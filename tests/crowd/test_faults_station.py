"""A whole station and its public site, with things going wrong in the middle.

The robot is a virtual ALOHA whose leaders are moved by the test's hands; site and agent are the
programs that people run.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.virtual_station import VirtualStation, virtual_station, wait_until
from collect.crowd import ledger, pairing, plays, standings, stations
from collect.crowd.database import Database
from collect.crowd.keys import load_key
from collect.crowd.tables import Consent, LedgerEntry, Participant, Play, Station
from robot_stack.episode import Episode, check
from robot_stack.types import Lifecycle
from tests.crowd import factories
from tests.crowd.site_process import SiteProcess

DATABASES = ["sqlite"]
LEADERS = ("leader_left", "leader_right")
HOME = (0.0, -0.96, 1.16, 0.0, -0.3, 0.0)
TABLE = (0.0, -0.1, 1.16, 0.0, -0.3, 0.0)  # fingertips 2 cm above it
REST = (0.0, -1.8, 1.55, 0.0, 0.8, 0.0)
SLEEP_SHOULDER_RAD = -1.85
GRIPPER, CLOSED_RAD = 6, -0.68


class Hands:
    """What a participant does with the leader arms."""

    def __init__(self, station: VirtualStation) -> None:
        self.station = station

    def begin(self) -> None:
        """Wait for the home pose, squeeze both grippers, and hold the leaders."""
        wait_until(
            lambda: all(
                self.station.lifecycle(leader) is Lifecycle.ARMED
                and not self._torque(leader)[GRIPPER]
                and self._torque(leader)[:GRIPPER].all()
                for leader in LEADERS
            ),
            "the ritual's home pose",
            60,
        )
        for leader in LEADERS:
            self.station.hand(leader, {GRIPPER: CLOSED_RAD})
        wait_until(
            lambda: not any(self._torque(leader).any() for leader in LEADERS),
            "the leaders being freed",
        )
        self.at = np.array(HOME)
        self._hold()

    def move(self, pose: Sequence[float], seconds: float = 1.5) -> None:
        """Both arms to a pose, at a hand's speed."""
        start = self.at
        began = time.monotonic()
        while (share := (time.monotonic() - began) / seconds) < 1.0:
            self.at = start + (0.5 - 0.5 * np.cos(np.pi * share)) * (np.array(pose) - start)
            self._hold()
            time.sleep(0.03)  # the pace of the motion
        self.at = np.array(pose)
        self._hold()

    def rest(self) -> None:
        """Put the leaders on their rests and let go."""
        self.move(REST)
        wait_until(lambda: self.station.client.tick(LEADERS[0])["q"][1] < -1.7, "the rest")
        self.let_go()

    def let_go(self) -> None:
        for leader in LEADERS:
            self.station.hand(leader, dict.fromkeys(range(GRIPPER + 1)))

    def _hold(self) -> None:
        for leader in LEADERS:
            self.station.hand(leader, dict(enumerate(self.at)))

    def _torque(self, leader: str) -> Any:
        return np.asarray(self.station.client.tick(leader)["torque"], dtype=bool)


class AgentProcess:
    """`robot-stack crowd station` beside the station."""

    def __init__(self, station: VirtualStation, outbox: Path) -> None:
        self.station = station
        self.outbox = outbox
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        command = ["crowd", "station", str(self.station.file), "--outbox", str(self.outbox)]
        self.process = self.station.start(*command, *options)

    def ensure(self) -> None:
        """It runs, whatever happened."""
        if self.process is None or self.process.poll() is not None:
            self.start()

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def end(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(60) == 0, self.station.log("crowd")

    @contextlib.contextmanager
    def full_disk(self) -> Iterator[None]:
        """The system refuses what it writes to any file."""
        assert self.process is not None
        free = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        try:
            yield
        finally:
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, free)

    def entry(self, play: Play) -> dict[str, Any]:
        path = self.outbox / "plays" / f"{play.id}.json"
        with contextlib.suppress(FileNotFoundError):
            found: dict[str, Any] = json.loads(path.read_text())
            return found
        return {}


class Scene:
    """The site's side: who drives, and what the site knows."""

    def __init__(self, site: SiteProcess, database: Database) -> None:
        self.database = database
        self.key = load_key(site.config.key_file)
        with database.begin() as tx:
            self.code = pairing.new_code(tx, self.key, "cafe", "agent")
            self.who = factories.make_participant(tx, tutorial_at=None)
            self.consent = factories.make_consent(tx, self.who)
            self.task = factories.make_task(tx, par_s=3.0)
        self.begun: list[Play] = []

    def start(self, kind: plays.Kind) -> Play:
        task = self.task if kind == "task" else None
        with self.database.begin() as tx:
            station = self.station(tx)
            who = tx.get_one(Participant, self.who.id)
            stations.grant(tx, station, who)
            consent = tx.get_one(Consent, self.consent.id)
            play = plays.start(tx, station, who, task=task, kind=kind, consent=consent)
        self.begun.append(play)
        return play

    def station(self, tx: Any) -> Station:
        found = tx.query(Station).filter_by(name="cafe").one()
        assert isinstance(found, Station)
        return found

    def told(self) -> dict[str, Any]:
        with self.database.read() as tx:
            return dict(self.station(tx).state)

    def learnt(self) -> list[str]:
        return list((self.told().get("tutorial") or {}).get("done", []))

    def row(self, play: Play) -> Play:
        with self.database.read() as tx:
            return tx.get_one(Play, play.id)

    def synced(self, play: Play) -> Play:
        wait_until(lambda: self.row(play).state == "synced", "the episode's arrival", 60)
        return self.row(play)

    def settle(self) -> None:
        """End and report what was spoilt, so that another play may begin."""
        with self.database.begin() as tx:
            running = plays.running(tx, self.station(tx))
            if running is not None:
                plays.finish(tx, running, by="staff")
            who = tx.get_one(Participant, self.who.id)
            while (play := plays.unreported(tx, who)) is not None:
                plays.report(tx, play, claimed=False, likert=(3, 3, 3))

    def report(self, play: Play) -> None:
        with self.database.begin() as tx:
            for _ in range(2):
                plays.report(tx, tx.get_one(Play, play.id), claimed=True, likert=(4, 4, 4))


def idle(robot: VirtualStation, cafe: Scene) -> bool:
    """Returns when the arms are lowered. As staff would, resets a robot that has had a fault (True)
    meanwhile: on a starved machine a bus may fall silent."""
    faulted = False

    def ready() -> bool:
        nonlocal faulted
        if cafe.told()["phase"] == "fault":
            faulted = True
            for group in ("leaders", "followers"):
                robot.client.request("reset", {"group": group}, timeout_s=30.0)
        return bool(cafe.told()["phase"] == "idle")

    wait_until(ready, "the arms being lowered", 60)
    return faulted


@contextlib.contextmanager
def explained(robot: VirtualStation, cafe: Scene) -> Iterator[None]:
    """What fails says what agent and site know."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"agent: {robot.log('crowd')[-3000:]}")
        error.add_note(f"site: {cafe.told()}, {[vars(cafe.row(play)) for play in cafe.begun]}")
        raise


@pytest.fixture
def scene(tmp_path: Path, database: Database) -> Iterator[tuple[SiteProcess, Scene]]:
    site = SiteProcess(tmp_path / "site", database.url.render_as_string(hide_password=False))
    with site.running():
        site.start()
        yield site, Scene(site, database)


class Story:
    """What happens in the cafe, act by act. An act that a starved machine has spoilt, on which a
    servo bus fell silent, is played again once staff have reset the robot."""

    STARVED = ("no answer", "silent", "lost its torque")

    def __init__(self, site: SiteProcess, cafe: Scene, robot: VirtualStation, outbox: Path) -> None:
        self.site, self.cafe, self.robot = site, cafe, robot
        self.agent, self.hands = AgentProcess(robot, outbox), Hands(robot)
        self.told: list[Play] = []

    def play(self, act: Callable[[], Play]) -> None:
        for left in (2, 1, 0):
            said = len(self.robot.log("crowd"))
            try:
                self.told.append(act())
                return
            except (AssertionError, TimeoutError):
                news = self.robot.log("crowd")[said:]
                if not left or not any(word in news for word in self.STARVED):
                    raise
                self.site.ensure()
                self.agent.ensure()
                self.hands.let_go()
                idle(self.robot, self.cafe)
                self.cafe.settle()

    def tutorial(self) -> Play:
        """Judged by the robot: nobody presses anything."""
        cafe, hands = self.cafe, self.hands
        play = cafe.start("tutorial")
        hands.begin()
        wait_until(lambda: cafe.learnt() == ["home", "squeeze"], "home and squeeze")
        hands.move(TABLE)
        wait_until(lambda: "touch" in cafe.learnt(), "both arms at the table")
        assert cafe.row(play).state == "running"
        hands.rest()
        learnt = cafe.synced(play)
        assert (learnt.ended_by, learnt.kind) == ("rest", "tutorial")
        with cafe.database.read() as tx:
            assert tx.get_one(Participant, cafe.who.id).tutorial_at is not None
        if not idle(self.robot, cafe):
            lowered = self.robot.client.tick("follower_left")["q"][1]
            assert lowered == pytest.approx(SLEEP_SHOULDER_RAD, abs=0.1)
        return play

    def site_dies(self) -> Play:
        """In the middle of a play, which goes to its end."""
        cafe, hands, site, agent = self.cafe, self.hands, self.site, self.agent
        play = cafe.start("task")
        hands.begin()
        wait_until(lambda: cafe.told().get("phase") == "playing", "the recording")
        site.kill()
        for pose in (TABLE, HOME, TABLE, HOME):
            hands.move(pose, 1.0)
        hands.rest()
        wait_until(lambda: agent.entry(play).get("state") == "ended", "the end of the recording")
        waiting = agent.entry(play)
        kept = agent.outbox / "episodes" / waiting["file"]
        assert check(kept) == []
        assert cafe.row(play).state == "running"
        site.start()
        done = cafe.synced(play)
        assert done.ended_by == "rest" and done.file is not None
        assert done.sha256 == waiting["result"]["sha256"]
        with Episode.open(site.config.episodes / done.file) as episode:
            meta = episode.metadata
            assert (meta.uuid, meta.consent) == (play.id, cafe.consent.version)
            assert meta.operator == cafe.key.mac("contributor", cafe.who.id)[:32]
            assert meta.extra["scopes"] == cafe.consent.scopes
            assert str(cafe.who.nickname) not in json.dumps(meta.to_dict())
            assert len(episode) > 100
        assert done.metrics["path_m"] > 1.0 and done.metrics["dropped_frames"] == 0.0
        wait_until(lambda: not kept.exists(), "the outbox being emptied")
        cafe.report(play)
        idle(self.robot, cafe)
        return play

    def agent_dies(self) -> Play:
        """In the middle of a play; teleoperation ends with it, and the next agent tells of what was
        recorded."""
        cafe, hands, agent = self.cafe, self.hands, self.agent
        play = cafe.start("task")
        hands.begin()
        wait_until(lambda: cafe.told().get("phase") == "playing", "the recording")
        hands.move(TABLE, 1.0)
        agent.kill()
        hands.let_go()
        wait_until(
            lambda: self._holder() is None,
            "the end of teleoperation",
        )
        agent.start()
        lost = cafe.synced(play)
        assert lost.ended_by == "lost" and lost.metrics["seconds"] > 0.5
        cafe.report(play)
        return play

    def disarmed(self) -> Play:
        """By staff, and armed again: the arms follow nobody any more, so the play is over. While
        they are lowered somebody ends the agent: they stay where they are."""
        cafe, hands, client = self.cafe, self.hands, self.robot.client
        play = cafe.start("task")
        hands.begin()
        wait_until(lambda: cafe.told().get("phase") == "playing", "the recording")
        hands.move(TABLE, 1.0)
        client.disarm("followers")
        client.arm("followers")
        hands.let_go()
        wait_until(lambda: self._holder() == "sleep of followers", "the arms being lowered", 60)
        self.agent.end()
        for name in ("follower_left", "follower_right"):
            assert self.robot.lifecycle(name) is Lifecycle.DISARMED
            assert abs(client.tick(name)["q"][1] - SLEEP_SHOULDER_RAD) > 0.2
        self.agent.start()
        lost = cafe.synced(play)
        assert lost.ended_by == "lost"
        cafe.report(play)
        return play

    def _holder(self) -> str | None:
        found: str | None = self.robot.client.status()["groups"]["followers"]["holder"]
        return found

    def disk_full(self) -> None:
        """No file of the agent's can grow: it does not begin what it could not keep."""
        cafe = self.cafe
        idle(self.robot, cafe)
        with self.agent.full_disk():
            play = cafe.start("task")
            wait_until(lambda: cafe.row(play).state == "void", "the play being given up", 60)
            told = cafe.told()
            assert told["phase"] == "fault" and "the disk of the station is full" in told["fault"]
            with pytest.raises(plays.PlayError, match="a hand of the staff"):
                cafe.start("task")
        wait_until(lambda: cafe.told()["phase"] == "idle", "room")
        wait_until(lambda: self.agent.entry(play).get("state") == "done", "what was said then")


@pytest.mark.slow
def test_no_episode_is_lost(scene: tuple[SiteProcess, Scene], tmp_path: Path) -> None:
    site, cafe = scene
    with virtual_station(guard=True) as robot, explained(robot, cafe):
        story = Story(site, cafe, robot, tmp_path / "outbox")
        story.agent.start("--site", site.url, "--pair", cafe.code)
        wait_until(lambda: cafe.told().get("phase") == "idle", "the agent's heartbeat", 60)
        for act in (story.tutorial, story.site_dies, story.disarmed, story.agent_dies):
            story.play(act)
        story.disk_full()
        story.agent.end()
        assert not list((story.agent.outbox / "episodes").glob("*.hdf5*"))
    with cafe.database.read() as tx:
        assert {tx.get_one(Play, one.id).state for one in cafe.begun} <= {"synced", "void"}
        files = {tx.get_one(Play, one.id).file for one in story.told}
        assert len(files) == 4 and None not in files
        claims = [entry.key for entry in tx.query(LedgerEntry).filter_by(kind="claim")]
        assert len(claims) == len(set(claims))
        assert standings.differences(tx) == {}
        assert ledger.points_of(tx, cafe.who.id) >= 10
