"""`robot-stack eval --station`: two policies blind on a real station, judged by a person."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from collect.evaluation.blind import Answer, BlindSession, table
from collect.keys import Keys
from collect.policy_episode import PolicyEpisode
from collect.rollout import PolicyRunner
from collect.run_policy import open_policy
from collect.session import RecordingSession, recorded_group
from robot_stack.client import StationClient
from robot_stack.config import Station, load_station
from robot_stack.errors import ConfigError

__all__ = ["StationTrials", "run"]

T = TypeVar("T")

POLL_S = 0.02
ANSWERS: Mapping[str, Answer] = {
    "s": "success",
    "f": "failure",
    "r": "again",
    "u": "undo",
    "q": "quit",
}
ENDS = ("enter", "s", "f", "r", "q")


class StationTrials:
    """Runs the episodes of a blind session on a station, and asks the person in front of it.

    ``policies`` are endpoints of policy servers, with a policy's name after ``#`` where a server
    hosts several. The person never reads which one a trial runs.
    """

    def __init__(
        self,
        station: Station,
        client: StationClient,
        keys: Callable[[], list[str]],
        say: Callable[[str], None],
        *,
        decoder: str,
        seconds: float,
        execute: int | None,
        record: Path | None,
    ) -> None:
        self._station, self._client = station, client
        self._keys, self._say = keys, say
        self._decoder, self._seconds, self._execute = decoder, seconds, execute
        self._record = record
        self._pressed: str | None = None

    def ready(self, trial: int, trials: int) -> bool:
        """Ask for the scene to be reset; False when the person has had enough."""
        self._say(f"trial {trial + 1} of {trials}: reset the scene, then enter (q: end)")
        return self._wait({"enter": True, "q": False})

    def judge(self, trial: int) -> Answer:
        """Ask for the verdict, unless the key that ended the episode was one."""
        pressed, self._pressed = self._pressed, None
        if pressed is not None and pressed in ANSWERS:
            return ANSWERS[pressed]
        self._say(
            f"trial {trial + 1}: s success, f failure, r run it again (something else went wrong), "
            "u the one before was judged wrongly, q end"
        )
        return self._wait(ANSWERS)

    def _wait(self, answers: Mapping[str, T]) -> T:
        while True:
            for key in self._keys():
                if key in answers:
                    return answers[key]
            time.sleep(POLL_S)

    def run(self, policy: str, trial: int) -> dict[str, Any]:
        """One episode: to the start pose, then until its time is up or a key ends it."""
        self._pressed = None
        endpoint, _, name = policy.partition("#")
        group = recorded_group(self._station)
        with contextlib.ExitStack() as stack:
            source = open_policy(
                endpoint, self._station, group, self._client, name=name, decoder=self._decoder
            )
            stack.callback(source.close)
            recording = None
            if self._record is not None:
                about = {"blind_trial": trial}
                recording = stack.enter_context(
                    RecordingSession(
                        self._station, directory=self._record, operator="policy", policy=about
                    )
                )
            runner = PolicyRunner(
                self._station,
                group,
                self._client,
                source,
                execute=self._execute,
                say=lambda text: None,  # it may name the policy
            )
            episode = PolicyEpisode(
                runner,
                seconds=self._seconds,
                recording=recording,
                before=lambda: self._say("running; enter ends it, so do s, f, r"),
            )
            found = episode.run(self._ended)
        kept = ("seconds", "chunks", "ended", "starved_ticks", "takeovers", "file")
        return {key: found[key] for key in kept if key in found}

    def _ended(self) -> bool:
        for key in self._keys():
            if key in ENDS:
                self._pressed = key
        return self._pressed is not None


def run(args: argparse.Namespace) -> int:
    console = Console(stderr=args.json)
    policies = [policy for policy in args.policies.split(",") if policy]
    if len(policies) != 2:
        raise ConfigError("--policies: give two endpoints with a comma between, A,B")
    station = load_station(args.station)

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    with StationClient(station.station) as client, Keys() as keys:
        if not keys.active:
            raise ConfigError("a blind comparison asks a person: run it in a terminal")
        trials = StationTrials(
            station,
            client,
            keys.poll,
            say,
            decoder=args.decoder,
            seconds=args.seconds,
            execute=args.execute,
            record=args.record,
        )
        with BlindSession(
            args.out,
            policies,
            pairs=args.pairs,
            seed=args.seed0,
            run=trials.run,
            ready=trials.ready,
            judge=trials.judge,
        ) as session:
            session.conduct()
            report = session.report()
    if not report["complete"] and not args.unblind:
        say(
            f"{len(report['trials'])} of {2 * args.pairs} trials are judged; the same command goes "
            "on. Which policy did what is told when all are, or with --unblind"
        )
        print(json.dumps({"complete": False, "judged": len(report["trials"])}))
        return 0
    (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    if not args.json:
        console.print(table(report))
    print(json.dumps(report))
    return 0
