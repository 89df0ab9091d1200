"""A policy that samples as another one does, with its network taken apart and an engine's loop."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping

import torch
from torch import nn

from policies.conditioned import ConditionedPolicy
from policies.inference.choices import EngineName, Precision
from policies.inference.engines import CudaGraphs, Engine, EngineMaker, OpenVino, Torch
from policies.inference.networks import Parts, take_apart
from policies.inference.program import Program, program
from policies.interfaces import Array, Need, Policy
from robot_stack.contract import PolicyContract
from robot_stack.errors import PolicyError
from robot_stack.registry import missing_dependency

__all__ = ["FastPolicy", "accelerate", "runs_alone"]

# How far an engine's first step may be from the policy's own, in the network's range.
TOLERANCE: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.1}

log = logging.getLogger(__name__)


class FastPolicy:
    """A ``policies.interfaces.Policy`` that draws the samples of ``policy``, to about 1e-5.

    ``engines`` are tried in turn. One that cannot be made, that fails, or whose first step in a
    form is not the policy's own, is left for good. After the last one stands the policy itself,
    which also draws guided samples, since they need gradients.
    """

    def __init__(
        self,
        policy: ConditionedPolicy,
        parts: Parts,
        steps: Program,
        engines: Mapping[str, EngineMaker],
        precision: Precision = "float32",
        threads: int = 1,
    ) -> None:
        self.contract: PolicyContract = policy.contract
        self.gives: frozenset[Need] = policy.gives
        self.policy = policy
        self._parts, self._program = parts, steps
        self._untried = dict(engines)
        self._engine: Engine | None = None
        self._proven: set[Hashable] = set()
        self._precision, self._threads = precision, threads
        self._observations = policy.contract.observations
        features = len(policy.contract.state) + (policy.images.features if policy.images else 0)
        self._own_width = self._observations * features
        self._take_next()

    @property
    def device(self) -> torch.device:
        """The policy's."""
        return self.policy.device

    @property
    def engine(self) -> str:
        """The name of the engine in use; ``eager`` is the policy itself."""
        return "eager" if self._engine is None else self._engine.name

    def normalized(self, actions: Array) -> Array:
        """As ``Policy.normalized``."""
        return self.policy.normalized(actions)

    @torch.no_grad()
    def encode(self, state: torch.Tensor, images: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """As ``Policy.encode``: the policy's condition, flat, and what the network makes of it."""
        return self._with_projection(self.policy.encode(state, images))

    @torch.no_grad()
    def sample(
        self,
        condition: torch.Tensor,
        noise: torch.Tensor,
        *,
        start: torch.Tensor | None = None,
        level: float = 1.0,
        guide: tuple[torch.Tensor, torch.Tensor, float] | None = None,
    ) -> torch.Tensor:
        """As ``Policy.sample``."""
        engine, failure = self._engine, None
        if guide is None and engine is not None:
            try:
                return self._sample(engine, condition, noise, start, level)
            except Exception as error:  # noqa: BLE001  # a robot waits, and the policy can do it
                failure = error
        own = self._own(condition)
        # Raises here where not the engine was at fault but what was asked.
        chunk = self.policy.sample(own, noise, start=start, level=level, guide=guide)
        if engine is not None and failure is not None:
            self._leave(engine.name, failure)
            self._take_next()
        return chunk

    def _sample(
        self,
        engine: Engine,
        condition: torch.Tensor,
        noise: torch.Tensor,
        start: torch.Tensor | None,
        level: float,
    ) -> torch.Tensor:
        form = engine.form(len(noise))
        if form not in self._proven:
            self._prove(engine, condition, noise)
            self._proven.add(form)
        return self._run(engine, condition, noise, start, level)

    def _run(
        self,
        engine: Engine,
        condition: torch.Tensor,
        noise: torch.Tensor,
        start: torch.Tensor | None,
        level: float,
    ) -> torch.Tensor:
        first = self._program.first(start, level)
        x = noise
        if start is not None and level != 1:
            of_start, of_noise = self._program.mixes[first]
            x = of_start * self.policy.normalize_action(start) + of_noise * noise
        clean = engine.run(x, condition[:, self._own_width :], first)
        return self.policy.restore_action(clean)

    def _prove(self, engine: Engine, condition: torch.Tensor, noise: torch.Tensor) -> None:
        """The last step by the engine and by the policy; PolicyError when they differ."""
        start, level = self.policy.restore_action(torch.zeros_like(noise)), 1 / self._steps
        ours = self._run(engine, condition, noise, start, level)
        theirs = self.policy.sample(self._own(condition), noise, start=start, level=level)
        error = self.policy.normalize_action(ours) - self.policy.normalize_action(theirs)
        worst, allowed = float(error.abs().max()), TOLERANCE[self._precision]
        if not worst <= allowed:
            raise PolicyError(f"a step of it is {worst:.2g} off, allowed is {allowed:g}")

    @property
    def _steps(self) -> int:
        return len(self._program.times)

    @torch.no_grad()
    def _take_next(self) -> None:
        """The next engine that draws a sample of nothing in particular rightly, if any."""
        self._engine = None
        self._proven.clear()
        contract, device = self.contract, self.policy.device
        own = torch.zeros(1, self._observations, self._own_width // self._observations)
        condition = self._with_projection(own.to(device))
        noise = torch.linspace(-1, 1, contract.horizon * len(contract.action))
        noise = noise.view(1, contract.horizon, -1).to(device)
        while self._untried and self._engine is None:
            name = next(iter(self._untried))
            make = self._untried.pop(name)
            try:
                engine = make(self._parts, self._program, self._precision, self._threads)
                self._sample(engine, condition, noise, None, 1.0)
                self._engine = engine
            except Exception as error:  # noqa: BLE001  # whatever a library does, there is another
                self._leave(name, error)
        log.info("policy %s: engine %s", contract.name, self.engine)

    def _leave(self, name: str, error: Exception) -> None:
        if isinstance(error, ImportError):
            error = missing_dependency(f"engine {name!r}", error) or error
        log.warning("policy %s: not with engine %s: %s", self.contract.name, name, error)

    def _with_projection(self, condition: torch.Tensor) -> torch.Tensor:
        return torch.cat((condition.flatten(1), self._parts.projection(condition)), dim=1)

    def _own(self, condition: torch.Tensor) -> torch.Tensor:
        """The policy's condition (M, To, F) out of ours."""
        return torch.unflatten(condition[:, : self._own_width], 1, (self._observations, -1))


def accelerate(
    policy: Policy,
    engine: EngineName = "auto",
    precision: Precision = "float32",
    threads: int | None = None,
) -> Policy:
    """``policy``, sampled by the fastest engine there is, or by the one that is named.

    On a CPU that is OpenVINO, with ``threads`` (default: as torch has), otherwise torch; on a GPU
    CUDA graphs. The policy itself where the engine is ``eager`` or its kind has no faster form
    (other networks than U-Net and MLP, other samplers than DDIM and Euler). The log says which it
    is. ``bfloat16`` halves what is read of weights and keeps two digits of a sample.
    """
    if engine == "eager":
        return policy
    steps = parts = None
    if isinstance(policy, ConditionedPolicy):
        steps = program(policy)
    if isinstance(policy, ConditionedPolicy) and steps is not None:
        parts = take_apart(policy.network, steps.times, policy.contract.horizon)
    if not isinstance(policy, ConditionedPolicy) or steps is None or parts is None:
        log.info("policy %s: engine eager: its kind has no faster form", policy.contract.name)
        return policy
    if policy.device.type == "cuda":
        if engine == "openvino":
            raise PolicyError("engine openvino runs on a CPU: take engine auto, or device cpu")
        kinds: dict[str, EngineMaker] = {"cuda-graphs": CudaGraphs}
        for module in policy.images.modules() if policy.images else ():
            if isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.data.to(memory_format=torch.channels_last)
    else:
        kinds = {"openvino": OpenVino}
    if engine == "torch":
        kinds = {}
    engines = {**kinds, "torch": Torch}
    return FastPolicy(policy, parts, steps, engines, precision, threads or torch.get_num_threads())


def runs_alone(policy: Policy) -> bool:
    """Whether the policy's engine leaves torch's threads to others, so that one more can run."""
    return isinstance(policy, FastPolicy) and policy.engine in ("openvino", "cuda-graphs")
