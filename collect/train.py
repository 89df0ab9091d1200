"""`robot-stack train`: from recorded episodes to a checkpoint, with a bar, a log and resumption."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from collect.dataset.paths import episode_files
from collect.recorder_config import software
from robot_stack.errors import ConfigError, PolicyError

if TYPE_CHECKING:
    from policies.training.config import TrainConfig
    from policies.training.demonstrations import Demonstration
    from policies.training.trainer import Result, Rollout
    from policies.training.windows import Pixels

__all__ = ["add_arguments", "run", "train"]

RUN_FILE = "run.json"
PLAIN_S = 30.0  # between lines of progress where there is no terminal
# Keys of a configuration that a resumed run may change: they don't alter what is learnt.
FREE = ("log_every", "checkpoints", "validation", "rollout")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Learn a policy from recorded episodes (ours, or public ALOHA files). Checkpoints, which "
        "`robot-stack policy serve` and `robot-stack eval` load, are written to "
        "RUN/checkpoints/step_XXXXXXX; scalars to RUN/log.jsonl and RUN/tensorboard. Ctrl-C saves; "
        "after that, a crash or a kill, --resume goes on where the run was last saved, with the "
        "same losses as if nothing had happened."
    )
    parser.epilog = """examples:
  robot-stack train --episodes data/pusht --config configs/train/pusht_state_mlp.yaml \\
      --out runs/pusht --threads 1
  robot-stack train --episodes data/pusht --config configs/train/pusht_state_mlp.yaml \\
      --out runs/pusht --resume
  tensorboard --logdir runs

Training files are in configs/train; `state` there names what the policy sees: `<robot>/<joint>`,
or `env/<i>` for column i of a world's state. docs/training.md says more.
"""
    parser.add_argument(
        "--episodes", metavar="PATH", nargs="+", required=True, help="directories or episode files"
    )
    parser.add_argument("--config", metavar="YAML", type=Path, required=True, help="training file")
    parser.add_argument(
        "--out", metavar="RUN", type=Path, required=True, help="the run's directory"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run that is there")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1...; auto: a GPU where there is one"
    )
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads (torch decides)")
    parser.add_argument(
        "--steps", metavar="N", type=int, help="instead of the training file's, for a quick look"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object only")


def run(args: argparse.Namespace) -> int:
    import torch

    if args.threads is not None:
        if args.threads < 1:
            raise ConfigError("--threads must be at least 1")
        torch.set_num_threads(args.threads)
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("--device cuda, but torch sees no GPU here; use --device cpu")
    result, report = train(
        args.episodes,
        args.config,
        args.out,
        resume=args.resume,
        device=device,
        steps=args.steps,
        console=Console(stderr=True, quiet=args.json),
    )
    if not args.json:
        _say(args, result)
    print(json.dumps(report))
    return 0 if result.finished else 130


def _say(args: argparse.Namespace, result: Result) -> None:
    if result.finished:
        print(f"{result.steps} steps in {result.seconds / 60:.1f} min: {result.checkpoint}")
        return
    again = " ".join(["robot-stack", *sys.argv[1:]])
    print(f"stopped and saved at step {result.steps}; go on with")
    print(f"  {again}" + ("" if args.resume else " --resume"))


def train(
    paths: Sequence[str | Path],
    config_path: Path,
    out: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    steps: int | None = None,
    console: Console | None = None,
) -> tuple[Result, dict[str, Any]]:
    """Train as the command does; the result, and the report that the command prints last.

    ConfigError, EpisodeError and PolicyError say what of the training file, the episodes or an
    existing run does not fit.
    """
    from policies.training.config import load_config
    from policies.training.demonstrations import demonstrations
    from policies.training.prepare import fresh_policy, split
    from policies.training.trainer import Trainer
    from policies.training.windows import Windows

    console = console or Console(stderr=True, quiet=True)
    config = load_config(config_path, steps)
    _free(out, resume)
    files = episode_files(paths)
    with _bar(console, "reading") as bar:
        row = bar.add_task("", total=len(files))
        episodes = []
        for one in demonstrations(files, config.data):
            episodes.append(one)
            bar.update(row, advance=1)
    if not episodes:
        raise ConfigError(f"none of {len(files)} episodes has a label in {config.data.labels!r}")
    parts = split(episodes, config.validation.share, config.seed)
    policy = fresh_policy(config, parts.train)
    said = {
        "config": config.to_json(),
        "contract": policy.contract.to_json(),
        "data": _data(episodes),
        "held_out": [one.path.name for one in parts.validation],
        "software": software(),
    }
    _remember(out, said, resume)

    def windows(chosen: Sequence[Demonstration]) -> Windows:
        return Windows(
            chosen,
            observations=config.observations,
            horizon=config.horizon,
            first_action=config.first,
            pad_after=config.reach,
            images=images(chosen),
        )

    images = _images(config, episodes, out, console)
    rollout, every = _rollout(config)
    with _progress(console, config.steps) as tell, _signals() as stopped:
        trainer = Trainer(
            config,
            policy,
            windows(parts.train),
            out,
            validation=windows(parts.validation) if parts.validation else None,
            rollout=rollout,
            rollout_every=every,
            provenance=said,
            device=device,
            tell=tell,
            stop=lambda: bool(stopped),
        )
        for note in trainer.notes:
            console.print(f"train: {note}", markup=False)
        result = trainer.fit()
    report = {
        "ok": result.finished,
        "checkpoint": str(result.checkpoint) if result.checkpoint else None,
        "steps": result.steps,
        "val_action_mse": result.values.get("validation/action_mse"),
        "train_loss": result.values.get("train/loss"),
        "minutes": result.seconds / 60,
        "parameters": sum(p.numel() for p in policy.parameters()),
        "episodes": len(episodes),
        "device": device,
        **{k: v for k, v in result.values.items() if k.startswith("rollout/")},
    }
    return result, report


def _free(out: Path, resume: bool) -> None:
    """ConfigError when ``out`` holds a run that would be overwritten, or none to resume."""
    there = (out / RUN_FILE).exists()
    if there and not resume:
        raise ConfigError(
            f"{out} holds a training run already; go on with it by --resume, or give another --out"
        )
    if not there and out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty and holds no training run; give another --out")


def _data(episodes: Sequence[Demonstration]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for one in episodes:
        digest.update(one.digest.encode())
    return {
        "episodes": len(episodes),
        "rows": sum(len(one) for one in episodes),
        "directories": sorted({str(one.path.parent) for one in episodes}),
        "sha256": digest.hexdigest(),
    }


def _remember(out: Path, said: Mapping[str, Any], resume: bool) -> None:
    """Keep what the run is of; on resumption PolicyError names in what it differs."""
    from policies.checkpoint import write_atomically

    path = out / RUN_FILE
    if resume and path.exists():
        before = json.loads(path.read_text())
        old, new = before["config"], said["config"]
        differ = [k for k in new if k not in FREE and old.get(k) != new[k]]
        if old["validation"]["share"] != new["validation"]["share"]:
            differ.append("validation.share")
        if before["data"]["sha256"] != said["data"]["sha256"]:
            differ.append("the episodes")
        if differ:
            raise PolicyError(
                f"{out} was begun with another {', '.join(differ)}; resume it with what it was "
                "begun with, or give another --out"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(said, indent=1).encode())


def _images(
    config: TrainConfig, episodes: Sequence[Demonstration], out: Path, console: Console
) -> Any:
    """What gives windows over some episodes their frames."""
    if not config.data.cameras:
        return lambda chosen: {}
    import torch

    from collect.jpeg import decode
    from collect.resize import resize
    from policies.training.frames import FrameCache

    caches = []
    with _bar(console, "decoding frames") as bar:
        for camera in config.data.camera_inputs:
            row = bar.add_task("", total=None)

            def show(done: int, total: int, row: Any = row) -> None:
                bar.update(row, completed=done, total=total)

            caches.append(
                FrameCache(
                    out / "frames",
                    camera,
                    episodes,
                    decode,
                    resize,
                    threads=torch.get_num_threads(),
                    progress=show,
                )
            )

    def images(chosen: Sequence[Demonstration]) -> dict[str, Pixels]:
        return {cache.camera.name: cache.pixels(chosen) for cache in caches}

    return images


def _rollout(config: TrainConfig) -> tuple[Rollout | None, int]:
    """The periodic rollouts that ``rollout`` in the training file asks for."""
    if config.rollout is None:
        return None, 0
    from collect.evaluation.training import rollouts_of

    return rollouts_of(config.rollout)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM end the run after the step at hand; a second one ends it at once."""
    caught: list[int] = []

    def note(number: int, _: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    before = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bar(console: Console, what: str) -> Progress:
    return Progress(TextColumn(what), BarColumn(), TimeRemainingColumn(), console=console)


@contextlib.contextmanager
def _progress(console: Console, steps: int) -> Iterator[Any]:
    """A bar on a terminal, a line now and then elsewhere."""
    if not console.is_terminal:
        yield _Lines(console, steps)
        return
    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        TextColumn("{task.fields[scalars]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, speed_estimate_period=120) as bar:
        row = bar.add_task("", total=steps, scalars="")

        def tell(step: int, values: Mapping[str, float]) -> None:
            bar.update(row, completed=step, scalars=_scalars(values))

        yield tell


class _Lines:
    """Progress as plain lines, with the time that is left."""

    def __init__(self, console: Console, steps: int) -> None:
        self._console, self._steps = console, steps
        self._began: tuple[int, float] | None = None
        self._told_s = 0.0

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        now_s = time.monotonic()
        if self._began is None:
            self._began = (step, now_s)
        if now_s - self._told_s < PLAIN_S and step < self._steps:
            return
        self._told_s = now_s
        first, began_s = self._began
        left = ""
        if step > first:
            minutes = (now_s - began_s) / (step - first) * (self._steps - step) / 60
            left = f", {minutes:.1f} min left"
        width = shutil.get_terminal_size().columns
        self._console.print(
            f"train: step {step}/{self._steps} {_scalars(values)}{left}",
            markup=False,
            highlight=False,
            width=max(width, 120),
        )


def _scalars(values: Mapping[str, float]) -> str:
    shown = {
        "train/loss": "loss",
        "validation/action_mse": "held-out action error",
        "rollout/success_rate": "success",
        "rollout/mean_max_reward": "reward",
    }
    return "  ".join(f"{text} {values[name]:.4f}" for name, text in shown.items() if name in values)
