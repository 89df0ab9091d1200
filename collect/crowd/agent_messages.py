"""What the site and a station's agent say to each other: JSON, checked on both sides.

**The site can request, never command, motion.** An order names a play to begin or to end; there is
nothing in it that says how anything moves, and an order with anything else in it is no order. The
agent's times are differences (``ago_s``, ``elapsed_s``): whose clock is right is the site's.

What an agent says may have more in it than this site knows (a newer agent's); what the site says
may not.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

__all__ = [
    "LONGEST_AGO_S",
    "LONGEST_PLAY_S",
    "TUTORIAL_STEPS",
    "Answer",
    "Ended",
    "Heartbeat",
    "Order",
    "PairAnswer",
    "PairRequest",
    "ResultAnswer",
    "ResultReport",
    "State",
    "Tutorial",
    "Warned",
]

Phase = Literal["idle", "homing", "tutorial", "playing", "lowering", "fault"]
TutorialStep = Literal["home", "squeeze", "touch", "rest"]
TUTORIAL_STEPS: tuple[TutorialStep, ...] = get_args(TutorialStep)
Step = TutorialStep | Literal["done"]
AgentEndedBy = Literal["button", "rest", "time", "lost"]

PlayId = Annotated[
    str,
    StringConstraints(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"),
]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Word = Annotated[str, StringConstraints(max_length=64)]
Number = Annotated[float, Field(ge=0.0, le=1e9, allow_inf_nan=False)]
LONGEST_PLAY_S = 900
LONGEST_AGO_S = 31_536_000.0
Seconds = Annotated[float, Field(ge=0.0, le=LONGEST_AGO_S, allow_inf_nan=False)]


class _Said(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tutorial(_Said):
    """How far somebody is in learning to drive: the step that they are at, and those done."""

    play: PlayId
    step: Step
    done: Annotated[list[Step], Field(max_length=5)] = []


class Warned(_Said):
    """How near the arms are to what they must not touch: 0 far, 1 slowed down, 2 held back.
    ``between`` names the arm."""

    level: Annotated[int, Field(ge=0, le=2)] = 0
    distance_m: Annotated[float, Field(ge=-1.0, le=10.0, allow_inf_nan=False)] | None = None
    between: Word = ""


class Ended(_Said):
    """The last play that ended here, how, and how long ago."""

    play: PlayId
    by: AgentEndedBy
    ago_s: Seconds = 0.0


class State(_Said):
    """What an agent says of itself twice a second. ``n`` counts within a process, ``boot``. Of the
    plays that are ``waiting`` the site does not know ``unknown``."""

    phase: Phase
    play: PlayId | None = None
    step: Step | None = None
    elapsed_s: Seconds | None = None
    seconds: Annotated[int, Field(ge=1, le=LONGEST_PLAY_S)] | None = None
    tutorial: Tutorial | None = None
    warning: Warned = Warned()
    leaders_resting: bool = False
    fault: Annotated[str, StringConstraints(max_length=300)] | None = None
    ended: Ended | None = None
    waiting: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    unknown: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    boot: Word
    n: Annotated[int, Field(ge=0, le=2**53)]
    t: Word = ""


class Heartbeat(_Said):
    """``fence``: the highest one that the agent has heard of. It is at most half of what an order
    may have: an agent can't use them up."""

    state: State
    fence: Annotated[int, Field(ge=0, le=2**52)] = 0


class Order(_Asked):
    """Begin or end a play, and what is to be written into its episode."""

    do: Literal["start", "stop"]
    play: PlayId
    kind: Literal["tutorial", "task", "free"] | None = None
    fence: Annotated[int, Field(ge=0, le=2**53)] | None = None
    task: Word | None = None
    instruction: Annotated[str, StringConstraints(max_length=200)] | None = None
    seconds: Annotated[int, Field(ge=1, le=LONGEST_PLAY_S)] | None = None
    contributor: Word | None = None
    consent: Word | None = None
    scopes: Annotated[list[Word], Field(max_length=8)] = []


class Answer(_Asked):
    """The site's answer to a heartbeat; ``lease``: seconds that are left of somebody's turn."""

    fence: int
    lease: float | None
    orders: list[dict[str, object]]


class PairRequest(_Said):
    code: Annotated[str, StringConstraints(max_length=40)]


class PairAnswer(_Said):
    token: str
    station: str


class ResultReport(_Said):
    """What came of a play. ``rows`` 0: nothing was recorded. ``file``: where the episode is below
    the site's episodes, if the station can write there; else it is sent by PUT."""

    ended_by: AgentEndedBy
    ended_ago_s: Seconds = 0.0
    rows: Annotated[int, Field(ge=0, le=100_000_000)]
    seconds: Number | None = None
    path_m: Number | None = None
    jerk: Number | None = None
    idle_fraction: Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)] | None = None
    collisions: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    dropped_frames: Annotated[int, Field(ge=0, le=100_000_000)] | None = None
    checked: bool | None = None
    tutorial_done: bool = False
    sha256: Sha256 | None = None
    size: Annotated[int, Field(ge=0, le=2**53)] | None = None
    file: Annotated[str, StringConstraints(max_length=200)] | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """What was measured, as `tables.Play` keeps it."""
        measured = {
            "seconds": self.seconds,
            "path_m": self.path_m,
            "jerk": self.jerk,
            "idle_fraction": self.idle_fraction,
            "collisions": self.collisions,
            "dropped_frames": self.dropped_frames,
        }
        return {name: value for name, value in measured.items() if value is not None}


class ResultAnswer(_Said):
    """What the site does about the file: it wants it, has it, wants none of it (nothing was
    recorded), or the play was erased and the station's own copy must go. ``unknown``: it knows no
    such play, as after its database was brought back from a backup; nobody can say who has agreed
    to what of it, so the station keeps it for a while and removes it then."""

    file: Literal["wanted", "here", "none", "erased", "unknown"]
