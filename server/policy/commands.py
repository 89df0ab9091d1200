"""`robot-stack policy serve|keygen|health|reload`: run a policy server, and ask one."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from policies.inference.choices import ENGINES, PRECISIONS
from robot_stack import __version__
from robot_stack.errors import PolicyError
from robot_stack.policy_client import PolicyClient, policy_endpoint

from .endpoints import require_keys
from .fronts.arguments import add_openpi, openpi_front
from .keys import ServerKeys, make_keys

__all__ = ["add_arguments", "run"]

# A policy that computes in Python, not in torch, holds up the loop that talks to clients by a few
# of these: 16 ms with Python's own 5 ms, 7 ms with this.
SWITCH_S = 0.0005

SERVE = """Host checkpoints for robots: observations in, action chunks out, over ZeroMQ.

Listens on a socket file of this computer that only you can reach; --bind adds others. Addresses
that other computers can reach need --keys. Ctrl-C answers what is being computed, then ends."""
SERVE_EXAMPLES = """examples:
  robot-stack policy serve runs/pusht/checkpoints/step_0010000
  robot-stack policy serve STRONG --weak EARLY              for the decoder bid
  robot-stack policy serve pusht=DIR transfer=DIR           two policies, by name
  robot-stack policy serve DIR --bind tcp://0.0.0.0:5555 --keys keys
  robot-stack policy serve DIR --openpi-port 8000           for unmodified openpi clients too
"""
HEALTH = "Whether a policy server is ready, and what it hosts. Exit status 1 when it is not."
RELOAD = """Load a policy's checkpoint anew, or another one, beside the one that is served, and swap
when it is warm. Sessions go on with the new one, without the chunks of the old. Only over the
server's socket file, by the user it runs as."""
KEYGEN = """Make the keys that let other computers use a policy server: one pair for the server and
one a client. Carry DIR/clients/NAME.json to the client's computer; DIR/allowed lists who may
connect, and a running server sees its changes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Host policies for robots, and ask a server how it is."
    parser.epilog = (
        "examples:\n"
        "  robot-stack policy serve runs/pusht/checkpoints/step_0010000\n"
        "  robot-stack policy health"
    )
    commands = parser.add_subparsers(
        title="commands",
        metavar="COMMAND",
        dest="policy_command",
        required=True,
        parser_class=argparse.ArgumentParser,
    )
    raw = argparse.RawDescriptionHelpFormatter

    serve = commands.add_parser(
        "serve",
        help="host checkpoints",
        description=SERVE,
        epilog=SERVE_EXAMPLES,
        formatter_class=raw,
    )
    serve.add_argument(
        "checkpoints", nargs="+", metavar="[NAME=]DIR", help="checkpoint; NAME: as in its contract"
    )
    serve.add_argument(
        "--weak",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="an early checkpoint of the same run as NAME's, for decoders that contrast",
    )
    serve.add_argument("--name", default="policy", help="the server's name on this computer")
    serve.add_argument(
        "--bind",
        action="append",
        default=[],
        metavar="ENDPOINT",
        help="listen here too: ipc://PATH or tcp://ADDRESS:PORT",
    )
    serve.add_argument("--keys", metavar="DIR", help="keys for tcp (see `policy keygen`)")
    serve.add_argument(
        "--threads",
        type=int,
        default=max(1, (os.cpu_count() or 2) // 2),
        help="torch's threads (default: half the cores, the rest is the robot's)",
    )
    serve.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    serve.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="what samples: auto takes OpenVINO on a CPU where it is installed, CUDA graphs on a "
        "GPU, else torch; eager samples as training does (default: auto; the log says which)",
    )
    serve.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="bfloat16 is faster, with two digits of a sample left (default: float32)",
    )
    serve.add_argument("--batch", type=int, default=8, help="requests in one inference at most")
    serve.add_argument("--sessions", type=int, default=256, help="open sessions at most")
    serve.add_argument(
        "--idle-s", type=float, default=300.0, help="ends a session without requests"
    )
    serve.add_argument(
        "--metrics-port",
        type=int,
        metavar="PORT",
        help="/metrics and /healthz over HTTP on 127.0.0.1 (0: any free port)",
    )
    add_openpi(serve)

    keygen = commands.add_parser(
        "keygen",
        help="make keys for clients on other computers",
        description=KEYGEN,
        epilog="example: robot-stack policy keygen --to keys --client lab2",
        formatter_class=raw,
    )
    keygen.add_argument("--to", required=True, metavar="DIR", help="where the keys go")
    keygen.add_argument(
        "--client", action="append", metavar="NAME", help="a client to let in (default: client)"
    )

    health = commands.add_parser(
        "health",
        help="is a server ready?",
        description=HEALTH,
        epilog="example: robot-stack policy health tcp://lab2:5555 --keys lab2.json",
        formatter_class=raw,
    )
    _add_endpoint(health)

    reload = commands.add_parser(
        "reload",
        help="swap in another checkpoint",
        description=RELOAD,
        epilog="example: robot-stack policy reload --checkpoint runs/a/checkpoints/step_0012000",
        formatter_class=raw,
    )
    _add_endpoint(reload)
    reload.add_argument("--policy", default="", help="which one, where several are served")
    reload.add_argument("--checkpoint", metavar="DIR", help="another one than what was loaded")
    reload.add_argument("--weak", metavar="DIR", help="with --checkpoint: its weak companion")
    for command in (keygen, health, reload):
        command.add_argument("--json", action="store_true", help="print one JSON object only")


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "endpoint",
        nargs="?",
        default="policy",
        help="ipc://PATH, tcp://HOST:PORT or a server's name on this computer (default: policy)",
    )
    parser.add_argument("--keys", metavar="FILE", help="this client's key file")
    parser.add_argument("--timeout", type=float, default=None, help="seconds to wait")


def run(args: argparse.Namespace) -> int:
    command = {"serve": _serve, "keygen": _keygen, "health": _health, "reload": _reload}
    return command[args.policy_command](args)


def _serve(args: argparse.Namespace) -> int:
    keys = ServerKeys.read(args.keys) if args.keys else None
    for endpoint in args.bind:
        require_keys(endpoint, keys=keys is not None)
    for what in ("threads", "batch", "sessions"):
        if getattr(args, what) < 1:
            raise PolicyError(f"--{what} is {getattr(args, what)}, and must be 1 at least")
    checkpoints, weak = _named_checkpoints(args.checkpoints, args.weak)

    from policies.checkpoint import load_hosted

    from .server import PolicyServer
    from .worker import Loader

    sys.setswitchinterval(SWITCH_S)
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")

    def loader(strong: str, weak: str | None) -> Loader:
        return lambda: load_hosted(
            strong, weak, args.device, engine=args.engine, precision=args.precision
        )

    server = PolicyServer(
        {name: loader(strong, weak.get(name)) for name, strong in checkpoints.items()},
        [policy_endpoint(args.name), *args.bind],
        keys=keys,
        threads=args.threads,
        batch=args.batch,
        sessions=args.sessions,
        idle_s=args.idle_s,
        metrics_port=args.metrics_port,
        reload_from=loader,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: server.stop())
    logging.info("robot-stack %s: policy server %r", __version__, args.name)
    for endpoint in server.endpoints:
        logging.info("  listens at %s", endpoint)
    if server.metrics_page:
        logging.info("  metrics at %s", server.metrics_page)
    with openpi_front(args, server.endpoints[0]):
        logging.info("loading %s on %s", ", ".join(checkpoints), args.device)
        server.run()
    logging.info("ended")
    return 0


def _named_checkpoints(strong: list[str], weak: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The directories of the policies, and of weak companions, by the policy's name."""
    checkpoints: dict[str, str] = {}
    for text in strong:
        name, directory = _named(text)
        if not name:
            from policies.checkpoint import read_manifest

            name = read_manifest(directory).contract.name
        if name in checkpoints:
            raise PolicyError(f"two policies are called {name!r}: give NAME=DIR")
        checkpoints[name] = directory
    companions: dict[str, str] = {}
    for text in weak:
        name, directory = _named(text)
        if not name and len(checkpoints) > 1:
            raise PolicyError(f"--weak {text}: of which policy? Give NAME={text}")
        name = name or next(iter(checkpoints))
        if name not in checkpoints:
            known = ", ".join(checkpoints)
            raise PolicyError(f"--weak {text}: no policy is called {name!r} (served: {known})")
        companions[name] = directory
    return checkpoints, companions


def _named(text: str) -> tuple[str, str]:
    name, separator, directory = text.partition("=")
    return (name, directory) if separator and "/" not in name else ("", text)


def _keygen(args: argparse.Namespace) -> int:
    names = args.client or ["client"]
    written = make_keys(args.to, names)
    if not args.json:
        print(f"carry {', '.join(f'{args.to}/clients/{n}.json' for n in names)} to the client")
        print(
            f"serve with `robot-stack policy serve ... --bind tcp://0.0.0.0:5555 --keys {args.to}`"
        )
    print(json.dumps({"written": [str(path) for path in written]}))
    return 0


def _client(args: argparse.Namespace, timeout_s: float) -> PolicyClient:
    return PolicyClient(args.endpoint, keys=args.keys, timeout_s=args.timeout or timeout_s)


def _health(args: argparse.Namespace) -> int:
    client = _client(args, 3.0)
    try:
        state = client.ask("health")
    finally:
        client.close()
    if not args.json:
        print(
            f"{state['server']} at {client.endpoint}: {'ready' if state['ready'] else 'not ready'}"
        )
        if state["detail"]:
            print(f"  {state['detail']}")
        for name, policy in state["policies"].items():
            print(
                f"  {name}: generation {policy['generation']}, {policy['waiting']} waiting, "
                f"decoders {', '.join(policy['decoders'])}"
            )
        print(f"  {state['sessions']} sessions, {state['resident_bytes'] / 2**20:.0f} MiB")
    print(json.dumps({key: state[key] for key in state if key not in ("timing", "sent_ns")}))
    return 0 if state["ready"] else 1


def _reload(args: argparse.Namespace) -> int:
    body: dict[str, Any] = {"policy": args.policy}
    if args.checkpoint:
        body["checkpoint"] = str(Path(args.checkpoint).resolve())
    if args.weak:
        body["weak"] = str(Path(args.weak).resolve())
    client = _client(args, 300.0)
    try:
        generation = client.ask("reload", body)["generation"]
    finally:
        client.close()
    if not args.json:
        print(f"{client.endpoint} serves generation {generation}")
    print(json.dumps({"generation": generation}))
    return 0
