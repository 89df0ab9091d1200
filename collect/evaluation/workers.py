"""Episodes on several cores: worker processes of one thread each, that run batches of seeds."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch

from collect.evaluation.rollouts import Score, rollouts
from collect.evaluation.world import World, WorldOptions, make_world
from policies.checkpoint import load_hosted
from policies.decoding.table import make_decoder
from policies.hosted import Hosted
from policies.inference.choices import EngineName
from policies.interfaces import Decoder, Step
from robot_stack.errors import PolicyError, RobotStackError

__all__ = ["Batch", "Plan", "batches", "decoder_of", "draws_of", "run_batches"]

# Samples that are denoised at once: more make a step slower by as much, and cost memory.
SAMPLES_AT_ONCE = 300
MOST_WORLDS = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """What is evaluated, and how: all that a worker needs to know. ``samples`` is for the decoders
    that have such an option; None leaves them their own."""

    world: str
    checkpoint: str
    weak: str | None = None
    options: WorldOptions = field(default_factory=WorldOptions)
    noise: float = 0.0
    execute: int | None = None
    samples: int | None = None
    engine: EngineName = "auto"

    def hosted(self) -> Hosted:
        """The policy as it was trained, without an engine."""
        return load_hosted(self.checkpoint, self.weak)

    def fast(self) -> Hosted:
        """The policy with its engine, which takes seconds to make."""
        return load_hosted(self.checkpoint, self.weak, engine=self.engine)


@dataclass(frozen=True, slots=True)
class Batch:
    """Seeds that one worker runs with one decoder, ``worlds`` of them at a time."""

    decoder: str
    seeds: tuple[int, ...]
    worlds: int


def decoder_of(plan: Plan, name: str) -> Decoder:
    """The decoder ``name`` with the plan's number of samples, where it has such an option."""
    kind = type(make_decoder(name))
    takes_samples = "samples" in getattr(kind, "__dataclass_fields__", {})
    return make_decoder(
        name, {"samples": plan.samples} if takes_samples and plan.samples is not None else None
    )


def draws_of(decoder: Decoder, hosted: Hosted) -> int:
    """How many samples the decoder draws for a first chunk, of strong and weak policy."""
    step = Step((), 0, np.random.default_rng(0))
    return len(decoder.plan(step, hosted.strong).noise)


def batches(name: str, seeds: Sequence[int], draws: int, workers: int) -> list[Batch]:
    """Seeds in batches, small enough that all workers have one, and that little is lost when an
    evaluation is killed."""
    worlds = min(MOST_WORLDS, max(8, SAMPLES_AT_ONCE // draws), -(-len(seeds) // workers))
    return [
        Batch(name, tuple(seeds[first : first + worlds]), worlds)
        for first in range(0, len(seeds), max(1, worlds))
    ]


def run_batches(
    plan: Plan, todo: Sequence[Batch], workers: int, progress: Callable[[str, int], None]
) -> Iterator[tuple[str, Score]]:
    """(decoder, score) of each episode as it ends. ``progress(decoder, steps)`` is told how many
    control steps were done or, by an early success, spared.

    One worker runs in this process. PolicyError when a worker fails or dies; then the others end.
    """
    if workers <= 1:
        torch.set_num_threads(1)
        worker = _Worker(plan)
        for batch in todo:
            for score in worker.run(batch, progress):
                yield batch.decoder, score
        return
    context = multiprocessing.get_context("spawn")
    pipes: dict[Connection, Any] = {}
    try:
        for _ in range(min(workers, len(todo))):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, plan), daemon=True)
            process.start()
            theirs.close()
            pipes[mine] = process
        yield from _distribute(list(todo), pipes, progress)
    finally:
        for pipe, process in pipes.items():
            pipe.close()
            process.terminate()
            process.join()


def _distribute(
    todo: list[Batch], pipes: dict[Connection, Any], progress: Callable[[str, int], None]
) -> Iterator[tuple[str, Score]]:
    busy = 0
    for pipe in pipes:
        pipe.send(todo.pop(0))
        busy += 1
    while busy:
        ready = wait(list(pipes))
        for pipe in [pipe for pipe in pipes if pipe in ready]:
            try:
                kind, *values = pipe.recv()
            except EOFError:
                process = pipes[pipe]
                process.join(5.0)
                raise PolicyError(
                    f"an evaluation worker died with exit status {process.exitcode} (-9 is mostly "
                    "a lack of memory: use fewer --workers); what is done is kept, run it again"
                ) from None
            if kind == "score":
                yield values[0], values[1]
            elif kind == "progress":
                progress(values[0], values[1])
            elif kind == "failed":
                raise PolicyError(values[0])
            elif todo:
                pipe.send(todo.pop(0))
            else:
                busy -= 1


class _Worker:
    """Holds the policy and worlds between batches."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._hosted = plan.fast()
        self._worlds: list[World] = []

    def run(self, batch: Batch, progress: Callable[[str, int], None]) -> Iterator[Score]:
        plan = self._plan
        while len(self._worlds) < batch.worlds:
            self._worlds.append(make_world(plan.world, plan.options))
        return rollouts(
            self._hosted,
            decoder_of(plan, batch.decoder),
            self._worlds[: batch.worlds],
            batch.seeds,
            execute=plan.execute,
            noise=plan.noise,
            progress=lambda steps: progress(batch.decoder, steps),
        )


def _serve(pipe: Connection, plan: Plan) -> None:
    """A worker process; it ends when its pipe does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    try:
        worker = _Worker(plan)
        while True:
            batch = pipe.recv()
            for score in worker.run(batch, lambda *told: pipe.send(("progress", *told))):
                pipe.send(("score", batch.decoder, score))
            pipe.send(("idle",))
    except (EOFError, BrokenPipeError):
        return
    except RobotStackError as error:
        pipe.send(("failed", str(error)))
