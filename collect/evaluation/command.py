"""`robot-stack eval`: a policy in a world over many seeds, or two policies blind on a station."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from collect.evaluation import report
from collect.evaluation.results import ResultFile
from collect.evaluation.videos import write_worst
from collect.evaluation.workers import Batch, Plan, batches, decoder_of, draws_of, run_batches
from collect.evaluation.world import World, WorldOptions, check_fit, make_world
from policies.checkpoint import read_manifest
from policies.decoding.table import check
from policies.hosted import Hosted
from policies.inference.choices import ENGINES
from robot_stack.errors import ConfigError, PolicyError
from robot_stack.registry import names

__all__ = ["add_arguments", "run"]

PUBLISHED_SEED = 100_000  # Diffusion Policy's first test seed

EPILOG = """examples:
  robot-stack eval --world pusht --checkpoint runs/pusht/checkpoints/step_0016000 \\
      --episodes 50 --out scores/first
  robot-stack eval --world pusht --checkpoint runs/pusht/checkpoints/step_0012000 \\
      --weak runs/pusht/checkpoints/step_0001000 --episodes 300 --noise 1 --execute 1 \\
      --decoder receding_horizon,ema,temporal_ensemble,coherence,bid --out scores/noise1
  robot-stack eval --world aloha-transfer --checkpoint runs/transfer/checkpoints/step_0003000

Each episode is kept as it ends: the same command after Ctrl-C or a kill goes on where it was, and
with more --episodes or decoders it adds them. Its directory then holds episodes.jsonl, report.json,
scores.png and worst/*.mp4.

The policy is run as by a robot that waits for it: observe, decode, execute --execute rows of the
chunk. --noise S makes the actions stochastic and --dynamic P moves the object, as in the BID paper
(Liu et al. 2024). Scores of two decoders are compared over the same seeds.

On a station, blind: two policies in random order, which nobody is told; a person resets the scene,
presses enter, and judges with s or f. It goes on where it was ended.
  robot-stack eval --station configs/aloha.yaml --pairs 10 --out scores/blind \\
      --policies tcp://127.0.0.1:5600#old,tcp://127.0.0.1:5600#new
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Score a policy in a simulated world: mean of the episodes' highest rewards and success "
        "rate with 80 % intervals, for one or several decoders over the same seeds. Or compare two "
        "policies on a station, blind."
    )
    parser.epilog = EPILOG
    add = parser.add_argument
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--world", metavar="NAME", help=f"one of: {', '.join(names('world'))}")
    where.add_argument("--station", metavar="FILE", help="station file (YAML): a blind comparison")
    add("--checkpoint", type=Path, metavar="DIR", help="the policy (of --world)")
    add("--weak", type=Path, metavar="DIR", help="an early checkpoint of the same run, for BID")
    add(
        "--decoder",
        default="receding_horizon",
        metavar="NAMES",
        help=f"with commas between; known: {', '.join(names('decoder'))}",
    )
    add("--episodes", type=int, default=100, metavar="N", help="for each decoder (default: 100)")
    add(
        "--seed0",
        type=int,
        default=PUBLISHED_SEED,
        metavar="S",
        help=f"seeds S .. S+N-1 (default: {PUBLISHED_SEED}); of the order of a blind comparison",
    )
    add("--noise", type=float, default=0.0, metavar="S", help="sigma of stochastic actions")
    add("--dynamic", type=float, default=0.0, metavar="P", help="px the object moves each step")
    add("--execute", type=int, metavar="TA", help="rows of each chunk (default: the policy's)")
    add("--samples", type=int, metavar="N", help="that coherence and BID choose from (default: 15)")
    add("--workers", type=int, metavar="N", help="processes (default: one for each core)")
    add(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="what samples (default: auto)",
    )
    add("--videos", type=int, default=2, metavar="N", help="of each decoder's worst (default: 2)")
    add("--policies", metavar="A,B", help="endpoints (of --station), each with #name if need be")
    add("--pairs", type=int, default=10, metavar="N", help="trials of each policy (--station)")
    add("--seconds", type=float, default=60.0, metavar="S", help="longest trial (--station)")
    add("--record", type=Path, metavar="DIR", help="record the trials there (--station)")
    add("--unblind", action="store_true", help="report before all trials are judged (--station)")
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="where results are kept (default for --world: under evaluations/, by what is asked)",
    )
    add("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    if args.station is not None:
        if args.policies is None:
            raise ConfigError("--station compares two policies: name them with --policies A,B")
        if args.out is None:
            raise ConfigError("--station keeps its trials in a directory: give it with --out DIR")
        from collect.evaluation import station

        return station.run(args)
    if args.checkpoint is None:
        raise ConfigError("--world scores a checkpoint: give its directory with --checkpoint")
    return _in_world(args)


def _in_world(args: argparse.Namespace) -> int:
    console = Console(stderr=args.json)
    if args.episodes < 1:
        raise ConfigError(f"--episodes is {args.episodes}; give at least 1")
    decoders = list(dict.fromkeys(name for name in args.decoder.split(",") if name))
    seeds = list(range(args.seed0, args.seed0 + args.episodes))
    workers = args.workers or len(os.sched_getaffinity(0))
    manifest = read_manifest(args.checkpoint)
    options = WorldOptions(args.dynamic, manifest.contract.start)
    plan = Plan(
        world=args.world,
        checkpoint=str(args.checkpoint),
        weak=None if args.weak is None else str(args.weak),
        options=options,
        noise=args.noise,
        execute=args.execute,
        samples=args.samples,
        engine=args.engine,
    )
    world = make_world(args.world, options)
    weights = _checked(plan, decoders, world)
    execute = args.execute or manifest.contract.execute
    header = {
        "world": args.world,
        "checkpoint": manifest.sha256,
        "weak": None if args.weak is None else read_manifest(args.weak).sha256,
        "noise": args.noise,
        "dynamic": args.dynamic,
        "execute": execute,
        "samples": args.samples,
    }
    out = args.out or _directory(header)
    title = f"{args.world}, noise {args.noise:g}, {execute} of each chunk executed"
    if args.dynamic:
        title += f", object moves {args.dynamic:g} px a step"
    with ResultFile(out, header) as file:
        todo: list[Batch] = []
        for name in decoders:
            left = [seed for seed in seeds if seed not in file.results.get(name, {})]
            todo += batches(name, left, weights[name], workers)
        _run_all(plan, todo, file, workers, weights, world.steps, console)
        # Of a longer evaluation, or of other decoders before, only what is asked now.
        asked = {name: {seed: file.results[name][seed] for seed in seeds} for name in decoders}
        summary = report.summarise(asked)
        report.plot(asked, summary, out / "scores.png", title)
        videos = write_worst(world, file, asked, args.videos)
    result = {
        **summary,
        **header,
        "episodes": args.episodes,
        "seed0": args.seed0,
        "checkpoint": str(args.checkpoint),
        "weak": plan.weak,
        "out": str(out),
    }
    (out / "report.json").write_text(json.dumps(result, indent=1) + "\n")
    if not args.json:
        console.print(report.table(summary, title))
        console.print(
            f"results, scores.png and {len(videos)} videos of the worst: {out}",
            soft_wrap=True,
        )
    print(json.dumps(result))
    return 0


def _directory(header: Mapping[str, Any]) -> Path:
    """Where results of this question are kept: the same question finds them again."""
    parts = [header["world"], header["checkpoint"][:8]]
    for key in ("weak", "noise", "dynamic", "execute", "samples"):
        value = header[key]
        if value:
            parts.append(f"{key}-{value[:8] if key == 'weak' else format(value, 'g')}")
    return Path("evaluations") / "-".join(parts)


def _checked(plan: Plan, decoders: list[str], world: World) -> dict[str, int]:
    """How many samples each decoder draws a chunk. PolicyError or ConfigError before anything
    runs when policy, world and decoders do not fit."""
    hosted: Hosted = plan.hosted()
    contract = hosted.contract
    check_fit(contract, world)
    if plan.execute is not None and not 1 <= plan.execute <= contract.rows:
        raise ConfigError(
            f"--execute is {plan.execute}; chunks of this policy have 1..{contract.rows} rows"
        )
    found = {}
    for name in decoders:
        decoder = decoder_of(plan, name)
        try:
            check(decoder, hosted)
        except PolicyError as error:
            hint = "" if plan.weak else " (contrast: give an early checkpoint with --weak)"
            raise PolicyError(f"{error}{hint}", error.code) from error
        found[name] = draws_of(decoder, hosted)
    return found


def _run_all(
    plan: Plan,
    todo: list[Batch],
    file: ResultFile,
    workers: int,
    draws: dict[str, int],
    steps: int,
    console: Console,
) -> None:
    """Run what is left, keeping each episode; a bar whose unit is a sample of one control step."""
    if not todo:
        return

    def work(decoder: str, count: int) -> int:
        return count * (1 + draws[decoder])

    total = sum(work(batch.decoder, steps * len(batch.seeds)) for batch in todo)
    columns: list[Any] = [
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console, speed_estimate_period=300) as progress:
        bar = progress.add_task("evaluating", total=total)

        def advance(decoder: str, count: int) -> None:
            progress.update(bar, advance=work(decoder, count))

        for decoder, score in run_batches(plan, todo, workers, advance):
            file.keep(decoder, score)
            done = file.results[decoder]
            mean = sum(result.max_reward for result in done.values()) / len(done)
            progress.update(bar, description=f"{decoder}: {len(done)} episodes, {mean:.3f}")
