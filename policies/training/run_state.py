"""What a killed run needs to go on exactly where it was: one safetensors file, replaced whole.

Weights, their average, the optimiser's moments, the gradient scaler and the loss summed since the
last log line. Everything random is a function of seed and step, so no generator's state is kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from policies.checkpoint import write_atomically
from robot_stack.errors import PolicyError

__all__ = ["RunState", "restore", "store"]

NAME = "state.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class RunState:
    """The numbers beside the tensors: steps done, seconds trained, bytes of the log so far."""

    step: int
    seconds: float
    log_bytes: int
    loss_count: int


def store(
    directory: Path,
    state: RunState,
    policy: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loss_sum: torch.Tensor,
) -> None:
    """Replace what ``directory`` holds; OSError (as for a full disk) leaves the old state."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {"loss_sum": loss_sum.reshape(1)}
    tensors |= {f"policy.{name}": p for name, p in policy.state_dict().items()}
    tensors |= {f"average.{name}": p for name, p in average.state_dict().items()}
    for name, parameter in policy.named_parameters():
        moments = optimizer.state.get(parameter, {})
        tensors |= {f"{key}.{name}": moments[key] for key in MOMENTS if key in moments}
    whole = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
    said = {"state": json.dumps(state.__dict__), "scaler": json.dumps(scaler.state_dict())}
    write_atomically(directory / NAME, save(whole, said))


def restore(
    directory: Path,
    policy: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loss_sum: torch.Tensor,
) -> RunState | None:
    """Load what ``store`` kept into the same objects; None where nothing was stored yet.

    PolicyError when the file is damaged or of another policy.
    """
    path = directory / NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata()
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        policy.load_state_dict(_part(found, "policy"))
        average.load_state_dict(_part(found, "average"))
        for name, parameter in policy.named_parameters():
            moments: dict[str, Any] = {
                key: found[f"{key}.{name}"].to(
                    parameter.device if key != "step" else _step_device(optimizer, parameter)
                )
                for key in MOMENTS
                if f"{key}.{name}" in found
            }
            if moments:
                optimizer.state[parameter] = moments
        scaler.load_state_dict(json.loads(said["scaler"]))
        loss_sum.copy_(found["loss_sum"].reshape(()))
        return RunState(**json.loads(said["state"]))
    except (SafetensorError, OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise PolicyError(
            f"{path} does not belong to this run or is damaged: {error}; start a new run in "
            "another directory"
        ) from error


def _part(found: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    start = f"{prefix}."
    return {n[len(start) :]: tensor for n, tensor in found.items() if n.startswith(start)}


def _step_device(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> torch.device | str:
    """Fused optimisers count steps where the parameter is."""
    return parameter.device if optimizer.defaults.get("fused") else "cpu"
