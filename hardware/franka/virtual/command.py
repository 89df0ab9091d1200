"""`robot-stack virtual franka`: a virtual Franka arm in the foreground, and words to a running one.

Light to import: the physics are loaded when an arm is run.
"""

from __future__ import annotations

import argparse
import json

from robot_stack.errors import ConfigError

__all__ = ["EPILOG", "WORD", "add_arguments", "run"]

WORD = "franka"
ADDRESS = "127.0.0.2"

EPILOG = """one Franka arm alone (FR3, or FER with --server-version 5), with its hand:
  robot-stack virtual franka                                    until Ctrl-C, at 127.0.0.2
  robot-stack virtual franka --server-version 5 --address 127.0.0.3
  robot-stack virtual franka status                             how the arm at 127.0.0.2 is doing
  robot-stack virtual franka reset                              as switched off and on again
  robot-stack virtual franka fault kind=reflex name=cartesian_reflex
  robot-stack virtual franka fault kind=lost_commands rate=0.05
  robot-stack virtual franka fault kind=user_stop active=false --address 127.0.0.3
its fault kinds: lost_commands, lost_states (rate), lose_next (count), delay, jitter, stall (ms),
  reflex (name), user_stop, guide, gripper_hang (active), push (wrench), version (number),
  half_close, crash, seed, calm. Options follow the action and its arguments.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that only `franka` has."""
    group = parser.add_argument_group(f"options of `{WORD}`")
    group.add_argument(
        "--server-version", type=int, choices=(5, 10), default=10,
        help="10: FR3, libfranka 0.18 and later (default); 5: FER, libfranka 0.9",
    )  # fmt: skip
    group.add_argument(
        "--address", default=ADDRESS,
        help=f"loopback address to serve, or `any` free one (default {ADDRESS}): the ports 1337 "
        "and 1338 are fixed, so that every arm needs an address of its own",
    )  # fmt: skip
    group.add_argument(
        "--lock-step", action="store_true",
        help="the next millisecond comes when the client has answered: for tests",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run an arm, or tell a running one something; the exit status."""
    if args.action is not None:
        from hardware.franka.virtual.address import control_name
        from hardware.worlds.control import tell

        reply = tell(control_name(args.address), args.action, args.arguments)
        print(json.dumps(reply, indent=None if args.json else 2))
        return 0
    if args.page:
        raise ConfigError(f"`{WORD}` has no page; leave --page out")
    from hardware.franka.virtual.process import serve, stand_alone

    arm = stand_alone(args.server_version, args.address, lock_step=args.lock_step)
    ready = {"address": arm.address, "server_version": arm.version, "model": arm.model}

    def say() -> None:
        if not args.json:
            print(
                f"virtual {arm.model.upper()} at {arm.address}: robot on port 1337, gripper on "
                f"1338, server version {arm.version}. End it with Ctrl-C."
            )
        print(json.dumps(ready), flush=True)

    serve(arm, attached=False, ready=say)
    return 0
