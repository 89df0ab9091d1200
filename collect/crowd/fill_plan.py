"""A simulated fortnight of a robot in a cafe, by a seeded generator: who came, what they did.

The figures are RoboCrowd's (arXiv 2411.01915): 231 participants and 817 episodes in three scenes,
of whose time 54.2 % went into tasks, 9.6 % into the tutorial and 36.1 % into free play. How these
are spread is ours: a few people play a lot, skill grows with practice, a hard task fails more
often, claims are a little kinder than the truth, and who sees the leaderboard comes back more.
"""

from __future__ import annotations

import datetime as dt
import math
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from collect.crowd.fill_names import nicknames
from collect.crowd.plays import EndedBy, Kind
from collect.crowd.tasks import TaskFile, Texts

__all__ = [
    "ARMS",
    "EPISODES",
    "PARTICIPANTS",
    "SCENES",
    "TIME_SHARES",
    "Fortnight",
    "PlannedPerson",
    "PlannedPlay",
    "Scene",
    "simulate",
]

CAFE = Path(__file__).parent / "texts" / "cafe.yaml"
PARTICIPANTS = 231
OPENS_H, CLOSES_H = 9, 18
TIME_SHARES = {"task": 0.542, "tutorial": 0.096, "free": 0.361}
TASK_PLAYS = 440  # of those that are no tutorials; the paper gives times, not counts
ARMS = ("material", "intrinsic", "social")


@dataclass(frozen=True, slots=True)
class Scene:
    """What stood on the table, on which days, for how many episodes."""

    name: str
    days: range
    episodes: int
    tasks: tuple[TaskFile, ...]


def _scenes() -> tuple[Scene, ...]:
    scenes: list[Scene] = []
    day = 0
    for item in yaml.safe_load(CAFE.read_text("utf-8")):
        tasks = tuple(
            TaskFile(
                **{
                    **task,
                    "texts": {name: Texts(**text) for name, text in task["texts"].items()},
                    "position": len(scenes) * 10 + number,
                }
            )
            for number, task in enumerate(item["tasks"], 1)
        )
        days = range(day, day + item["days"])
        scenes.append(Scene(item["name"], days, item["episodes"], tasks))
        day = days.stop
    return tuple(scenes)


SCENES = _scenes()
DAYS = SCENES[-1].days.stop
EPISODES = sum(scene.episodes for scene in SCENES)


@dataclass(frozen=True, slots=True)
class PlannedPerson:
    """Somebody who came. ``name_state``: approved, pending or refused; None without a nickname.

    ``arm``: None who came before the experiment. ``keen``: how much of the site's plays are
    theirs, relative to others; ``skill`` 0 to 1.
    ``scopes``: what they consented to; ``leaves``: how they went, if they asked to: withdrawn,
    erased.
    """

    came: dt.datetime
    kind: str
    nickname: str | None
    name_state: str | None
    language: str
    on_board: bool
    hidden: bool
    arm: str | None
    keen: float
    skill: float
    scopes: tuple[str, ...]
    leaves: str | None


@dataclass(frozen=True, slots=True)
class PlannedPlay:
    """One episode. ``success``: what really happened (tasks only); ``claimed``: what they said,
    None when they walked away or were not asked. ``quality`` 0 to 3 as a reviewer would see it."""

    person: int
    scene: int
    kind: Kind
    task: TaskFile | None
    starts: dt.datetime
    seconds: float
    ended_by: EndedBy
    success: bool
    claimed: bool | None
    likert: tuple[int, int, int]
    quality: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Fortnight:
    """All of it; plays in the order of time."""

    ends: dt.datetime
    people: list[PlannedPerson]
    plays: list[PlannedPlay] = field(default_factory=list)


@dataclass(slots=True)
class _Draft:
    person: int
    scene: int
    day: int
    kind: Kind


def simulate(ends: dt.datetime, seed: int = 0) -> Fortnight:
    """The fortnight whose last day ends at ``ends`` (aware; its zone is the cafe's). The same
    ``seed`` gives the same fortnight."""
    draw = random.Random(seed)
    people, arrival = _people(ends, draw)
    drafts = _drafts(people, arrival, draw)
    plays = _walked_away(_timed(_played(drafts, people, draw), ends, draw), draw)
    came: dict[int, dt.datetime] = {}
    for play in plays:
        came.setdefault(play.person, play.starts - dt.timedelta(seconds=40))
    return Fortnight(
        ends, [replace(person, came=came[n]) for n, person in enumerate(people)], plays
    )


def _people(ends: dt.datetime, draw: random.Random) -> tuple[list[PlannedPerson], list[int]]:
    """Who came, and on which day first (in order of it)."""
    shares = [scene.episodes * PARTICIPANTS // EPISODES for scene in SCENES]
    shares[-1] += PARTICIPANTS - sum(shares)
    arrival = sorted(
        draw.choice(scene.days)
        for scene, share in zip(SCENES, shares, strict=True)
        for _ in range(share)
    )
    names = nicknames(draw, PARTICIPANTS)
    people = []
    for number in range(PARTICIPANTS):
        # The experiment begins with the second scene.
        arm = None if arrival[number] in SCENES[0].days else draw.choice(ARMS)
        keen = draw.lognormvariate(0.0, 1.0) * (1.5 if arm == "social" else 1.0)
        kind = draw.choices(("card", "phone", "guest"), (6, 2, 2))[0]
        named = kind != "guest" or draw.random() < 0.4
        state = draw.choices(("approved", "pending", "refused"), (90, 7, 3))[0]
        if number % 29 == 7 or (arrival[number] == DAYS - 1 and draw.random() < 0.3):
            state = "pending"
        people.append(
            PlannedPerson(
                came=ends,
                kind=kind,
                nickname=names[number] if named else None,
                name_state=state if named else None,
                language=draw.choices(("en", "de"), (7, 3))[0],
                on_board=number % 37 != 11,
                hidden=number % 97 == 23,
                arm=arm,
                keen=keen,
                skill=min(0.95, max(0.05, draw.gauss(0.5, 0.18))),
                scopes=draw.choices(
                    (("record", "research", "clips"), ("record", "research"), ("record",)),
                    (70, 20, 10),
                )[0],
                leaves={53: "withdrawn", 101: "erased", 166: "erased"}.get(number),
            )
        )
    return people, arrival


def _drafts(people: list[PlannedPerson], arrival: list[int], draw: random.Random) -> list[_Draft]:
    """Who played when: each a tutorial on the first day, and what is left by keenness."""
    drafts: list[_Draft] = []
    for number, scene in enumerate(SCENES):
        new = [who for who, day in enumerate(arrival) if day in scene.days]
        drafts += [_Draft(who, number, arrival[who], "tutorial") for who in new]
        there = [who for who, day in enumerate(arrival) if day < scene.days.stop]
        # Who came in an earlier scene is back for this one only if it was great fun.
        weights = [
            people[who].keen * (1.0 if arrival[who] in scene.days else 0.15) for who in there
        ]
        for who in draw.choices(there, weights, k=scene.episodes - len(new)):
            first = max(arrival[who], scene.days.start)
            later = draw.random() < 0.3 or arrival[who] < scene.days.start
            day = draw.randrange(first, scene.days.stop) if later else first
            drafts.append(_Draft(who, number, day, "task"))
    others = [draft for draft in drafts if draft.kind == "task"]
    for draft in draw.sample(others, len(others) - TASK_PLAYS):
        draft.kind = "free"
    visits: dict[tuple[int, int], float] = defaultdict(draw.random)
    drafts.sort(
        key=lambda d: (
            d.day,
            visits[d.day, d.person],
            0.0 if d.kind == "tutorial" else draw.random() + 1.0,
        )
    )
    return drafts


def _played(
    drafts: list[_Draft], people: list[PlannedPerson], draw: random.Random
) -> list[PlannedPlay]:
    """What happened in each, without its time; durations in the paper's shares."""
    practice: Counter[int] = Counter()
    plays = []
    for draft in drafts:
        person = people[draft.person]
        skill = min(0.97, person.skill + 0.06 * practice[draft.person])
        practice[draft.person] += 1
        task = draw.choice(SCENES[draft.scene].tasks) if draft.kind == "task" else None
        plays.append(_one(draft, task, skill, draw))
    tasks_s = sum(play.seconds for play in plays if play.kind == "task")
    for kind in ("tutorial", "free"):
        now_s = sum(play.seconds for play in plays if play.kind == kind)
        scale = tasks_s * TIME_SHARES[kind] / TIME_SHARES["task"] / now_s
        plays = [
            replace(play, seconds=round(play.seconds * scale, 2)) if play.kind == kind else play
            for play in plays
        ]
    return [replace(play, metrics={**play.metrics, "seconds": play.seconds}) for play in plays]


def _one(draft: _Draft, task: TaskFile | None, skill: float, draw: random.Random) -> PlannedPlay:
    hard = task is not None and task.difficulty == "hard"
    success = draw.random() < (0.15 if hard else 0.4) + 0.55 * skill
    if task is None:
        seconds = draw.lognormvariate(math.log(22.0 if draft.kind == "tutorial" else 120.0), 0.35)
    else:
        middle = task.par_s * (1.9 - 1.2 * skill) * (1.0 if success else 1.25)
        seconds = min(draw.lognormvariate(math.log(middle), 0.35), float(task.seconds))
    enders: tuple[EndedBy, ...] = ("button", "rest", "lost")
    ended_by = draw.choices(enders, (60, 37, 3))[0]
    if task is not None and seconds >= task.seconds:
        ended_by, success = "time", False
    mood = 2.6 + 1.6 * skill + (0.5 if success else -0.4)
    intuitive, fun, did = (
        min(5, max(1, round(draw.gauss(mood + lift, 0.8)))) for lift in (0.0, 0.6, 0.0)
    )
    steady = min(0.98, max(0.02, draw.gauss(skill, 0.15)))
    quality = 0 if draft.kind == "free" else (2 if steady > 0.55 else 1)
    if draft.kind == "task" and success and steady > 0.72:
        quality = 3
    return PlannedPlay(
        person=draft.person,
        scene=draft.scene,
        kind=draft.kind,
        task=task,
        starts=dt.datetime.fromordinal(draft.day + 1).replace(tzinfo=dt.UTC),  # made in `_timed`
        seconds=round(seconds, 2),
        ended_by=ended_by,
        success=success and task is not None,
        claimed=draw.random() < (0.97 if success else 0.16) if task is not None else None,
        likert=(intuitive, fun, did),
        quality=quality,
        metrics={
            "path_m": round(seconds * draw.uniform(0.04, 0.11), 3),
            "jerk": round(18.0 + 70.0 * (1.0 - steady) ** 1.5 + draw.uniform(0.0, 6.0), 2),
            "idle_fraction": round(min(0.97, draw.betavariate(2.0, 3.0 + 6.0 * skill)), 3),
            "collisions": float(draw.choices((0, 1, 2, 5), (70, 18, 8, 4 if hard else 2))[0]),
            "dropped_frames": float(draw.choices((0, 1, 3, 400), (80, 12, 7, 1))[0]),
        },
    )


def _timed(plays: list[PlannedPlay], ends: dt.datetime, draw: random.Random) -> list[PlannedPlay]:
    """Give each a time of its own within opening hours: one robot, one person after the other."""
    days: dict[int, list[PlannedPlay]] = defaultdict(list)
    for play in plays:
        days[play.starts.toordinal() - 1].append(play)
    timed: list[PlannedPlay] = []
    midnight = ends.replace(hour=0, minute=0, second=0, microsecond=0)
    for day, todays in sorted(days.items()):
        begins = midnight - dt.timedelta(days=DAYS - 1 - day)
        opens, closes = (begins + dt.timedelta(hours=h) for h in (OPENS_H, CLOSES_H))
        if day == DAYS - 1:  # today: the cafe has just closed
            opens, closes = max(begins, ends - (closes - opens)), ends
        timed += _in_turn(todays, opens, closes, draw)
    return timed


def _walked_away(plays: list[PlannedPlay], draw: random.Random) -> list[PlannedPlay]:
    """Some leave without saying how their last play went."""
    following = [*plays[1:], None]
    return [
        replace(play, claimed=None)
        if (after is None or after.person != play.person) and draw.random() < 0.08
        else play
        for play, after in zip(plays, following, strict=True)
    ]


def _in_turn(
    plays: list[PlannedPlay], opens: dt.datetime, closes: dt.datetime, draw: random.Random
) -> list[PlannedPlay]:
    """The plays of a day in their order; who leaves lets some time pass before the next comes."""
    busy_s = [play.seconds + 20.0 for play in plays]
    idle_s = max(0.0, (closes - opens).total_seconds() - sum(busy_s))
    gaps = [
        draw.expovariate(1.0) if n == 0 or plays[n - 1].person != play.person else 0.02
        for n, play in enumerate(plays)
    ]
    last = draw.expovariate(1.0)
    unit = idle_s / (sum(gaps) + last)
    # A day that has just begun is too short for its plays: they go faster rather than overlap.
    squeeze = min(1.0, (closes - opens).total_seconds() / sum(busy_s))
    timed, at = [], opens
    for play, gap, busy in zip(plays, gaps, busy_s, strict=True):
        at += dt.timedelta(seconds=gap * unit)
        timed.append(replace(play, starts=at))
        at += dt.timedelta(seconds=busy * squeeze)
    return timed
