"""`robot-stack crowd arms`: the incentive experiment's arms and their shares."""

from __future__ import annotations

import argparse
import json

from sqlalchemy import func, select

from collect.crowd.commands import config_argument, config_of
from collect.crowd.database import Database
from collect.crowd.experiment import ARMS, set_arm
from collect.crowd.migrate import migrate
from collect.crowd.tables import IncentiveArm, Participant
from robot_stack.errors import ConfigError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Arms of the incentive experiment: material (sees rewards), intrinsic (badges and levels) "
        "and social (leaderboards). Who agrees to research at the first visit while arms are on is "
        "given one of them by chance, by weight, and keeps it for good. Everybody else sees "
        "everything."
    )
    parser.epilog = (
        "examples:\n"
        "  robot-stack crowd arms                                  what is on, who is in it\n"
        "  robot-stack crowd arms --set material=1 intrinsic=1 social=1\n"
        "  robot-stack crowd arms --off material                   nobody new gets it\n"
        "  robot-stack crowd arms --off material intrinsic social  the experiment is over\n"
        "  robot-stack crowd report                                what came of it"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="ARM=WEIGHT", help="on, with this weight"
    )
    parser.add_argument("--off", nargs="+", default=[], metavar="ARM", choices=tuple(ARMS))
    config_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    weights = dict(_weight(pair) for pair in args.set)
    database = Database(config_of(args).database)
    try:
        migrate(database)
        with database.begin() as tx:
            for name, weight in weights.items():
                set_arm(tx, name, weight, active=True)
            for name in args.off:
                set_arm(tx, name, active=False)
        with database.read() as tx:
            rows = tx.scalars(select(IncentiveArm).order_by(IncentiveArm.name)).all()
            members = dict(
                tx.execute(
                    select(Participant.arm, func.count())
                    .where(Participant.arm.is_not(None))
                    .group_by(Participant.arm)
                ).all()
            )
    finally:
        database.close()
    arms = [
        {
            "name": row.name,
            "sees": ARMS.get(row.name),
            "weight": row.weight,
            "active": row.active,
            "participants": members.get(row.name, 0),
        }
        for row in rows
    ]
    if not args.json:
        if not arms:
            print("no experiment: everybody sees everything")
        for arm in arms:
            print(
                f"{arm['name']:10} {'on ' if arm['active'] else 'off'}  weight {arm['weight']:g}  "
                f"sees {arm['sees']}  {arm['participants']} participants"
            )
    print(json.dumps({"ok": True, "arms": arms}))
    return 0


def _weight(pair: str) -> tuple[str, float]:
    name, _, value = pair.partition("=")
    try:
        weight = float(value)
    except ValueError:
        weight = -1.0
    if name not in ARMS or not 0.0 < weight <= 1000.0:
        raise ConfigError(
            f"--set {pair}: write ARM=WEIGHT with an arm out of {', '.join(ARMS)} and a weight "
            "above 0, such as material=1"
        )
    return name, weight
