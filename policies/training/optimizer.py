"""AdamW in groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from policies.training.config import OptimizerConfig
from robot_stack.errors import ConfigError

__all__ = ["make_optimizer", "rate_factor", "set_rate"]


def make_optimizer(policy: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Matrices and filters decay; biases, norms and embeddings (one-dimensional) do not.

    ConfigError when a key of ``config.rates`` begins no parameter's name.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    unused = set(config.rates)
    for name, parameter in policy.named_parameters():
        if not parameter.requires_grad:
            continue
        prefix = next((key for key in config.rates if name.startswith(key)), None)
        unused.discard(prefix or "")
        rate = config.learning_rate if prefix is None else config.rates[prefix]
        groups.setdefault((rate, parameter.ndim > 1), []).append(parameter)
    if unused:
        parts = sorted({name.split(".")[0] for name, _ in policy.named_parameters()})
        raise ConfigError(
            f"optimizer.rates: no parameter begins with {', '.join(sorted(unused))}; this policy's "
            f"begin with {', '.join(parts)}"
        )
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": rate,
                "base": rate,
                "weight_decay": config.weight_decay if decays else 0.0,
            }
            for (rate, decays), parameters in groups.items()
        ],
        betas=(config.betas[0], config.betas[1]),
        fused=True,
    )


def rate_factor(step: int, steps: int, config: OptimizerConfig) -> float:
    """What the learning rate of step ``step`` (from 0) of ``steps`` is multiplied by: linear
    warm-up, then half a cosine down to 0."""
    warmup = config.warmup_steps
    if step < warmup:
        return step / max(1, warmup)
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["base"] * factor
