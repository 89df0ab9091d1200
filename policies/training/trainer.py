"""The training loop: one step after the other, and what happens between them.

A step is a function of the seed, its number and the state before it: which windows, which noise.
So a run that was killed and resumed from its last saved state has the loss curve of one that was
not (on the same machine, with the same number of threads).
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policies.batch import Batch
from policies.checkpoint import save_checkpoint
from policies.trainable import TrainablePolicy
from policies.training.config import TrainConfig
from policies.training.ema import Ema
from policies.training.log import RunLog
from policies.training.optimizer import make_optimizer, rate_factor, set_rate
from policies.training.run_state import RunState, restore, store
from policies.training.windows import Windows, stream
from robot_stack.errors import PolicyError

__all__ = ["Result", "Rollout", "Tell", "Trainer", "action_error", "checkpoint_path"]

# (averaged policy, steps done) -> scalars such as {"rollout/success_rate": 0.4}
Rollout = Callable[[TrainablePolicy, int], Mapping[str, float]]
# (steps done, the scalars known by now)
Tell = Callable[[int, Mapping[str, float]], None]

PRECISION = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Result:
    """What a run came to; ``checkpoint`` is the last one saved, None when there is none yet."""

    checkpoint: Path | None
    steps: int
    seconds: float
    finished: bool
    values: Mapping[str, float]


@dataclass
class Trainer:
    """Trains ``policy`` on ``train`` into the directory ``run``.

    ``validation`` are windows of held-out episodes; ``rollout`` is called every ``rollout_every``
    steps and after the last. ``stop`` is asked after every step: True saves and ends the run.
    ``provenance`` goes into each checkpoint.
    """

    config: TrainConfig
    policy: TrainablePolicy
    train: Windows
    run: Path
    validation: Windows | None = None
    rollout: Rollout | None = None
    rollout_every: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    tell: Tell = lambda step, values: None
    stop: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        config = self.config
        self.policy.to(self.device).train()
        self.optimizer = make_optimizer(self.policy, config.optimizer)
        self.ema = Ema(self.policy, config.ema)
        self.values: dict[str, float] = {}
        self.notes: list[str] = []
        self._cast = PRECISION.get(config.precision)
        cuda = self.device.startswith("cuda")
        if config.precision == "float16" and not cuda:
            raise PolicyError("precision float16 needs a GPU; use bfloat16 or float32 on a CPU")
        if self._cast == torch.bfloat16 and not cuda and not _cpu_has_bfloat16():
            self._cast = None
            self.notes.append("this CPU has no bfloat16 arithmetic; float32 is used")
        self._scaler = torch.amp.GradScaler(
            "cuda" if cuda else "cpu", enabled=config.precision == "float16"
        )
        self._loss_sum = torch.zeros((), device=self.device)
        self._loss_count = 0
        self._saved: Path | None = None
        self._resume_step = 0

    def fit(self) -> Result:
        """Train until ``config.steps``, resuming what ``run`` holds.

        PolicyError when the loss is no number any more or the disk is full; what was saved last
        stays.
        """
        try:
            return self._fit()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise PolicyError(
                f"the disk of {self.run} is full; the run is saved up to step "
                f"{self._resume_step}: make room and go on with --resume"
            ) from error

    def _fit(self) -> Result:
        config = self.config
        last = self.run / "last"
        state = restore(
            last, self.policy, self.ema.model, self.optimizer, self._scaler, self._loss_sum
        )
        state = state or RunState(0, 0.0, 0, 0)
        self._loss_count, self._resume_step = state.loss_count, state.step
        existing = checkpoint_path(self.run, state.step)
        self._saved = existing if existing.exists() else None
        before_s, began_s, saved_s = state.seconds, time.monotonic(), time.monotonic()
        step = state.step

        with RunLog(self.run, state.log_bytes, step) as log, _Batches(self) as batches:

            def save() -> None:
                store(
                    last,
                    RunState(
                        step,
                        before_s + time.monotonic() - began_s,
                        log.flush(),
                        self._loss_count,
                    ),
                    self.policy,
                    self.ema.model,
                    self.optimizer,
                    self._scaler,
                    self._loss_sum,
                )
                self._resume_step = step

            while step < config.steps:
                self._step(step, batches.get(step))
                step += 1
                fresh = self._after(step, log)
                self.tell(step, self.values)
                stopping = step < config.steps and self.stop()
                if fresh or stopping or time.monotonic() - saved_s > config.checkpoints.save_s:
                    save()
                    saved_s = time.monotonic()
                if stopping:
                    break
        seconds = before_s + time.monotonic() - began_s
        return Result(self._saved, step, seconds, step >= config.steps, dict(self.values))

    def _step(self, step: int, batch: Batch) -> None:
        config = self.config
        torch.manual_seed(_seed(config.seed, step))
        set_rate(self.optimizer, rate_factor(step, config.steps, config.optimizer))
        with torch.autocast(
            self.device.split(":", maxsplit=1)[0], self._cast, enabled=self._cast is not None
        ):
            loss = self.policy.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self._scaler.scale(loss))
        if config.optimizer.clip_norm is not None:
            self._scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), config.optimizer.clip_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.ema.update(step)
        self._loss_sum += loss.detach()
        self._loss_count += 1

    def _after(self, step: int, log: RunLog) -> bool:
        """Log, validate, roll out and keep as due after ``step`` steps; True when anything is due
        that a resumed run should not do again."""
        config = self.config
        last = step == config.steps
        if last or step % config.log_every == 0:
            self._log_loss(step, log)
        fresh = False
        if self.validation is not None and (last or step % config.validation.every == 0):
            found = action_error(self.ema.model, self.validation, config, self.device)
            self._note(step, log, {"validation/action_mse": found})
            fresh = True
        if self.rollout is not None and (last or step % self.rollout_every == 0):
            self._note(step, log, self.rollout(self.ema.model, step))
            fresh = True
        every = config.checkpoints.every
        if last or step in config.checkpoints.at or (every and step % every == 0):
            path = checkpoint_path(self.run, step)
            save_checkpoint(
                path, self.ema.model, {**self.provenance, "step": step, "values": self.values}
            )
            self._saved = path
            fresh = True
        return fresh

    def _note(self, step: int, log: RunLog, values: Mapping[str, float]) -> None:
        log.add(step, values)
        self.values.update(values)

    def _log_loss(self, step: int, log: RunLog) -> None:
        loss = float(self._loss_sum) / self._loss_count
        if not np.isfinite(loss):
            raise PolicyError(
                f"the loss is {loss} at step {step}; a lower optimizer.learning_rate, or "
                "precision float32, may help. The run is saved up to step "
                f"{self._resume_step}"
            )
        self._note(
            step,
            log,
            {"train/loss": loss, "train/learning_rate": self.optimizer.param_groups[0]["lr"]},
        )
        self._loss_sum.zero_()
        self._loss_count = 0


class _Batches:
    """The batch of each step; with images, the next one is read while a step computes."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._ahead: tuple[int, Future[Batch]] | None = None
        self._pool = ThreadPoolExecutor(1) if trainer.train.images else None

    def __enter__(self) -> _Batches:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _read(self, step: int) -> Batch:
        config, windows = self._trainer.config, self._trainer.train
        return windows.batch(stream(len(windows), config.batch, step, config.seed))

    def get(self, step: int) -> Batch:
        if self._pool is None:
            return self._read(step).to(self._trainer.device)
        if self._ahead is not None and self._ahead[0] == step:
            found = self._ahead[1].result()
        else:
            found = self._read(step)
        if step + 1 < self._trainer.config.steps:
            self._ahead = (step + 1, self._pool.submit(self._read, step + 1))
        return found.to(self._trainer.device)


def _cpu_has_bfloat16() -> bool:
    """Without the instructions bfloat16 is slower than float32."""
    flags = torch.cpu.get_capabilities()
    return bool(flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("arm_bf16"))


def _seed(seed: int, step: int) -> int:
    """The seed of everything random in a step."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def action_error(
    policy: TrainablePolicy, windows: Windows, config: TrainConfig, device: str = "cpu"
) -> float:
    """Mean squared difference between sampled and demonstrated actions of held-out windows, in the
    policy's normalised units; padded actions do not count. The same windows and noise each time."""
    count = min(config.validation.windows, len(windows))
    chosen = np.unique(np.linspace(0, len(windows) - 1, count).round().astype(np.int64))
    generator = torch.Generator().manual_seed(config.seed)
    total, weight = 0.0, 0.0
    for start in range(0, len(chosen), config.batch):
        batch = windows.batch(chosen[start : start + config.batch])
        noise = torch.randn(batch.action.shape, generator=generator).to(device)
        seen = batch.to(device)
        found = policy.sample(policy.encode(seen.state, seen.images), noise)
        error = policy.normalized(found.float().cpu().numpy()) - policy.normalized(
            batch.action.numpy()
        )
        mask = batch.mask.numpy()[:, :, None]
        total += float((error**2 * mask).sum())
        weight += float(mask.sum()) * error.shape[-1]
    return total / weight


def checkpoint_path(run: Path, step: int) -> Path:
    """Where a run keeps the checkpoint of a step."""
    return run / "checkpoints" / f"step_{step:07d}"
