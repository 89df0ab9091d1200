"""Fill a site with a simulated fortnight, by the ways that everybody else takes.

Turns, plays, reports and results go through `stations` and `plays`, points through the ledger
alone, rewards, badges, consents and nicknames through their own modules; only the time is given
instead of being now. What is drawn, and by which figures, is `fill_plan`'s.
"""

from __future__ import annotations

import datetime as dt
import os
import random
import secrets
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from hashlib import file_digest
from pathlib import Path

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from collect import jpeg
from collect.crowd import (
    badges,
    consent,
    data_rights,
    experiment,
    names,
    people,
    plays,
    review,
    rewards,
    stations,
)
from collect.crowd.accounts import add_staff
from collect.crowd.config import CrowdConfig
from collect.crowd.database import Database
from collect.crowd.files import episode_path
from collect.crowd.fill_episodes import FRAME_ROWS, ROWS, draw_episode
from collect.crowd.fill_plan import (
    ARMS,
    DAYS,
    SCENES,
    Fortnight,
    PlannedPerson,
    PlannedPlay,
    simulate,
)
from collect.crowd.keys import SiteKey
from collect.crowd.segments import Segment
from collect.crowd.tables import (
    AuditEntry,
    ConsentText,
    HelpRequest,
    NicknameCase,
    Participant,
    Play,
    Review,
    RewardItem,
    Staff,
    Station,
    Task,
    new_id,
)
from collect.crowd.tasks import ClipFile, TaskFile, add_clip, put_task
from collect.dataset.video import encode
from robot_stack.episode import Episode
from robot_stack.errors import ConfigError

__all__ = ["Filled", "fill"]

STATION = "cafe"
REVIEWERS = ("mara", "jonas", "lea")
# Name, points, pieces a day.
REWARDS = (("sticker", 10, 2), ("chew", 20, 2), ("chocolate", 40, 1), ("mug", 400, 1))
STOCK = {"sticker": 300, "chew": 200, "chocolate": 120, "mug": 6}
LANGUAGES = ("en", "de")
CARD = "1234567890"


@dataclass(frozen=True, slots=True)
class Filled:
    """How much there is now. ``card``: the card number of somebody who was here often."""

    participants: int
    episodes: int
    card: str
    regular_id: str


@dataclass(frozen=True, slots=True)
class _File:
    """An episode that many plays share: theirs are links to it."""

    path: Path
    sha256: str


@dataclass(slots=True)
class _Day:
    """What staff look at in the evening."""

    plays: list[tuple[str, PlannedPlay]] = field(default_factory=list)
    cases: list[tuple[str, PlannedPerson]] = field(default_factory=list)


def fill(
    database: Database,
    key: SiteKey,
    config: CrowdConfig,
    *,
    ends: dt.datetime,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> Filled:
    """Put the fortnight that ends at ``ends`` into a migrated site without participants.

    ConfigError when somebody has taken part already.
    """
    with database.read() as tx:
        if tx.scalar(select(Participant.id).limit(1)) is not None:
            raise ConfigError(
                "this site has participants already; a simulated fortnight goes into a new one"
            )
    say("drawing episodes")
    fortnight = simulate(ends, seed)
    config.episodes.mkdir(parents=True, exist_ok=True)
    # Beside the episodes, which are links to these.
    with tempfile.TemporaryDirectory(prefix=".fill-", dir=config.episodes) as folder:
        files = _draw(Path(folder), seed)
        clips = _clips(Path(folder), files)
        say("simulating a fortnight")
        with database.begin() as tx:
            filler = _Filler(tx, key, config, fortnight, files, clips, seed)
            filler.run()
    data_rights.sweep(database, config)
    with database.read() as tx:
        return Filled(
            participants=tx.scalar(select(func.count(Participant.id))) or 0,
            episodes=tx.scalar(select(func.count(Play.id))) or 0,
            card=filler.card,
            regular_id=filler.regular.id,
        )


class _Filler:
    """One transaction in which a fortnight passes."""

    def __init__(
        self,
        tx: Session,
        key: SiteKey,
        config: CrowdConfig,
        fortnight: Fortnight,
        files: dict[tuple[int, bool], _File],
        clips: list[Path],
        seed: int,
    ) -> None:
        self.tx = tx
        self.key = key
        self.config = config
        self.fortnight = fortnight
        self.files = files
        self.clips = clips
        self.draw = random.Random(seed + 1)
        self.begins = fortnight.ends - dt.timedelta(days=DAYS + 1)
        self.station = Station(name=STATION, paired_at=self.begins, state={})
        self.drives = Counter(play.person for play in fortnight.plays)
        self.participants: list[Participant | None] = [None] * len(fortnight.people)
        # Who sees everything: came before the experiment.
        by_card = [
            n
            for n, person in enumerate(fortnight.people)
            if person.kind == "card"
            and person.arm is None
            and person.name_state == "approved"
            and not person.hidden
            and person.on_board
            and person.leaves is None
        ]
        self.keenest = max(by_card, key=lambda n: self.drives[n])
        self.card = CARD
        self.staff = [self._reviewer(key, name) for name in REVIEWERS]

    def run(self) -> None:
        """All days, one after the other, and what came of it."""
        self._site()
        for day in _days(self.fortnight.plays):
            today = _Day()
            for visit in _visits(day):
                self._visit(visit, today)
            self._evening(today, day[-1].starts)
        self._help(self.fortnight.plays[-1].starts)  # nobody has come yet
        self._aftermath()

    # -- the site ------------------------------------------------------------------------------

    def _site(self) -> None:
        self.tx.add(self.station)
        (self.config.episodes / STATION).mkdir(mode=0o750, exist_ok=True)
        consent.install_default(self.tx)
        # The text that comes with the site was in force all the fortnight.
        self.tx.execute(update(ConsentText).values(active_from=self.begins))
        for scene, clip in zip(SCENES, self.clips, strict=True):
            for task in scene.tasks:
                put_task(self.tx, task)
                caption = task.texts["en"].title
                shown = ClipFile(clip, caption, _captions(clip.parent, task))
                add_clip(self.tx, self.config.media, task.id, shown)
        for name, points, cap in REWARDS:
            self.tx.add(RewardItem(id=name, name=name.capitalize(), points=points, daily_cap=cap))
        self.tx.flush()
        for name, pieces in STOCK.items():
            entry = rewards.stock(
                self.tx, item_id=name, pieces=pieces, staff_id=self.staff[0].id, key=f"fill:{name}"
            )
            entry.created_at = self.begins
        for arm in ARMS:
            # The experiment is over: who comes now sees everything.
            experiment.set_arm(self.tx, arm, active=False)

    def _reviewer(self, key: SiteKey, name: str) -> Staff:
        """Somebody who worked here in those days; nobody knows the password."""
        staff, _ = add_staff(self.tx, key, name, "reviewer", secrets.token_urlsafe(24))
        staff.disabled = True
        return staff

    # -- people --------------------------------------------------------------------------------

    def _participant(self, number: int, today: _Day) -> Participant:
        """Who that is; made at the first visit, with nickname and consent."""
        known = self.participants[number]
        if known is not None:
            return known
        person = self.fortnight.people[number]
        made = Participant(
            created_at=person.came,
            kind=person.kind,
            card_hash=self._card(number),
            pseudonym=names.new_pseudonym(self.tx),
            language=person.language,
            adult=True,
            on_board=person.on_board,
            arm=person.arm if consent.RESEARCH in person.scopes else None,
        )
        self.tx.add(made)
        self.tx.flush()
        if person.nickname is not None:
            names.rename(self.tx, made, person.nickname, LANGUAGES)
            case = self.tx.scalars(
                select(NicknameCase).where(NicknameCase.participant_id == made.id)
            ).one()
            case.created_at = person.came
            today.cases.append((case.id, person))
        version = consent.current_version(self.tx, person.came)
        consent.give(self.tx, made, version, person.language, person.scopes, person.came)
        self.participants[number] = made
        return made

    def _card(self, number: int) -> str | None:
        """The keyed hash of somebody's card."""
        card = CARD if number == self.keenest else f"{self.draw.randrange(10**9, 10**10)}"
        has_one = self.fortnight.people[number].kind == "card"
        return people.card_hash(self.key, card) if has_one else None

    @property
    def regular(self) -> Participant:
        """Whose card is known."""
        who = self.participants[self.keenest]
        assert who is not None
        return who

    # -- a visit -------------------------------------------------------------------------------

    def _visit(self, visit: list[PlannedPlay], today: _Day) -> None:
        who = self._participant(visit[0].person, today)
        for planned in visit:
            now = planned.starts
            self.station.seen_at = now
            stations.grant(self.tx, self.station, who, now)
            today.plays.append((self._play(who, planned), planned))
        leaves = visit[-1].starts + dt.timedelta(seconds=visit[-1].seconds + 30.0)
        stations.release(self.tx, self.station, who, leaves)
        if self.draw.random() < 0.03:
            self._help(visit[-1].starts)
        if self.draw.random() < 0.6:
            self._look(who, leaves)

    def _play(self, who: Participant, planned: PlannedPlay) -> str:
        """Driven, ended, reported and synced; the play's id."""
        task = None if planned.task is None else self.tx.get(Task, planned.task.id)
        given = consent.valid(self.tx, who, planned.starts)
        assert given is not None
        play = plays.start(
            self.tx,
            self.station,
            who,
            task=task,
            kind=planned.kind,
            consent=given,
            now=planned.starts,
        )
        ends = planned.starts + dt.timedelta(seconds=planned.seconds)
        if planned.kind == "tutorial":
            stations.passed(self.tx, play, True, ends)
            badges.update(self.tx, who.id, ends)
        plays.finish(self.tx, play, by=planned.ended_by, now=ends)
        if planned.claimed is not None:
            plays.report(
                self.tx,
                play,
                claimed=planned.claimed,
                likert=planned.likert,
                worth=self.config.points,
                now=ends + dt.timedelta(seconds=9.0),
            )
        shared = self.files[planned.scene, planned.success]
        file = episode_path(STATION, play.id)
        os.link(shared.path, self.config.episodes / file)
        plays.result(
            self.tx,
            play,
            plays.Result(
                ended_by=planned.ended_by,
                rows=ROWS,
                metrics=planned.metrics,
                sha256=shared.sha256,
                file=file,
            ),
            worth=self.config.points,
            now=ends + dt.timedelta(seconds=14.0),
        )
        return play.id

    def _look(self, who: Participant, now: dt.datetime) -> None:
        """At what one's arm is about, before leaving; and candy, for whom that is."""
        for page in sorted(experiment.ARMS.values()):
            experiment.expose(self.tx, who, page, now)
        if not experiment.shows(who, "rewards"):
            return
        for offer in rewards.offers(self.tx, who.id, now):
            if offer.pieces and self.draw.random() < 0.6:
                rewards.hand(
                    self.tx,
                    item_id=offer.item.id,
                    participant_id=who.id,
                    key=f"fill:{now.isoformat()}",
                    now=now,
                )
                return

    def _help(self, at: dt.datetime) -> None:
        answered = at + dt.timedelta(seconds=self.draw.uniform(20.0, 400.0))
        now = answered < self.fortnight.ends - dt.timedelta(hours=4)
        self.tx.add(
            HelpRequest(
                station_id=self.station.id,
                created_at=at,
                answered_at=answered if now else None,
                answered_by=self.staff[0].id if now else None,
            )
        )

    # -- staff ---------------------------------------------------------------------------------

    def _evening(self, today: _Day, last: dt.datetime) -> None:
        """Staff decide on nicknames and look at some plays; of today's, at a few of the first."""
        at = last + dt.timedelta(hours=1)
        share = 0.62
        if at > self.fortnight.ends:
            at, share = today.plays[len(today.plays) // 2][1].starts, 0.3
            today = _Day(today.plays[: len(today.plays) // 2])
        for case_id, person in today.cases:
            case = self.tx.get_one(NicknameCase, case_id)
            if person.name_state != "pending":
                names.decide(
                    self.tx,
                    case,
                    approved=person.name_state == "approved",
                    staff_id=self.staff[0].id,
                )
                case.decided_at = at
                said = "approved" if case.approved else "refused"
                self._audit(0, f"nickname {said}", case.participant_id, at)
        for play_id, planned in today.plays:
            if planned.kind != "free" and self.draw.random() < share:
                at += dt.timedelta(seconds=25)
                self._review(play_id, planned, at)

    def _review(self, play_id: str, planned: PlannedPlay, at: dt.datetime) -> None:
        """One reviewer after another looks at a play until there is a verdict."""
        for staff in self.draw.sample(self.staff, len(self.staff)):
            look = Review(play_id=play_id, staff_id=staff.id, assigned_at=at)
            self.tx.add(look)
            self.tx.flush()
            at += dt.timedelta(seconds=20)
            decision = "confirm" if planned.success or planned.kind == "tutorial" else "reverse"
            if self.draw.random() < 0.04:
                decision = "unclear"
            most = 2 if planned.kind == "tutorial" else 3
            quality = min(most, max(1, planned.quality - (self.draw.random() < 0.1)))
            begins, ends = self.draw.randint(40, 70), self.draw.randint(320, 360)
            verdict = review.commit(
                self.tx,
                look,
                decision,
                quality,
                [
                    Segment(0, begins - 1, "play", 0),
                    Segment(begins, ends, planned.kind, quality),
                    Segment(ends + 1, ROWS - 1, "play", 0),
                ],
                self.config.points,
                rows=ROWS,
                desk=self.config.review,
                now=at,
            )
            newest = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(1)
            self.tx.scalars(newest).one().created_at = at
            if verdict is not None:
                return

    def _audit(self, who: int, action: str, subject: str, at: dt.datetime) -> None:
        self.tx.add(
            AuditEntry(staff_id=self.staff[who].id, action=action, subject=subject, created_at=at)
        )

    def _aftermath(self) -> None:
        """Who staff have hidden, and who has left."""
        ends = self.fortnight.ends
        for number, person in enumerate(self.fortnight.people):
            who = self.participants[number]
            assert who is not None
            if person.hidden:
                who.hidden = True
                self._audit(0, "hidden", who.id, ends)
            if person.leaves == "withdrawn":
                data_rights.withdraw(self.tx, who, [consent.REQUIRED], ends)
            elif person.leaves == "erased":
                data_rights.erase(self.tx, who, now=ends)
        self.tx.flush()


def _days(planned: list[PlannedPlay]) -> Iterator[list[PlannedPlay]]:
    """The plays of each day."""
    day: list[PlannedPlay] = []
    for play in planned:
        if day and play.starts.date() != day[-1].starts.date():
            yield day
            day = []
        day.append(play)
    yield day


def _visits(day: list[PlannedPlay]) -> Iterator[list[PlannedPlay]]:
    """Plays of one person after another."""
    visit: list[PlannedPlay] = []
    for play in day:
        if visit and play.person != visit[-1].person:
            yield visit
            visit = []
        visit.append(play)
    yield visit


# -- files -------------------------------------------------------------------------------------


def _draw(folder: Path, seed: int) -> dict[tuple[int, bool], _File]:
    """One success and one failure of each scene."""
    files = {}
    for number, scene in enumerate(SCENES):
        for success in (True, False):
            path = draw_episode(
                folder / f"{number}-{success}.hdf5",
                number,
                success=success,
                uuid=new_id(),
                task=scene.tasks[-1].id,
                seed=seed + 2 * number + success,
            )
            with path.open("rb") as file:
                files[number, success] = _File(path, file_digest(file, "sha256").hexdigest())
    return files


def _clips(folder: Path, files: dict[tuple[int, bool], _File]) -> list[Path]:
    """A video of each scene, in which it is done well."""
    clips = []
    for number in range(len(SCENES)):
        with Episode.open(files[number, True].path) as episode:
            pictures = [
                episode.image(episode.cameras[-1], row=row, decode=jpeg.decode)
                for row in range(0, len(episode), FRAME_ROWS)
            ]
            rate = Fraction(round(episode.schema.rate_hz), FRAME_ROWS)
        clips.append(folder / f"{number}.mp4")
        encode(pictures, clips[-1], rate)
    return clips


def _captions(folder: Path, task: TaskFile) -> dict[str, Path]:
    """What is said below the clip, by language."""
    files = {}
    for language, text in task.texts.items():
        files[language] = folder / f"{task.id}.{language}.vtt"
        files[language].write_text(f"WEBVTT\n\n00:00.000 --> 00:08.000\n{text.body}\n", "utf-8")
    return files
