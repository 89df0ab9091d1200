"""Checkpoints: a directory with ``policy.json`` and the weights as safetensors. No pickle.

``policy.json`` holds the architecture, the contract, the statistics and where the policy comes
from; it names its weights file and that file's SHA-256. Weights are written first, under a name
of their own, and count from the moment ``policy.json`` is renamed into place: a save that is
killed leaves the older checkpoint whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from policies.build import build
from policies.hosted import Hosted
from policies.inference.choices import EngineName, Precision
from policies.inference.fast import accelerate, runs_alone
from policies.interfaces import Policy
from policies.named import plain
from policies.normalizer import Normalizer
from policies.trainable import TrainablePolicy
from robot_stack.config import Section, parse, within
from robot_stack.contract import PolicyContract
from robot_stack.errors import ConfigError, PolicyError

__all__ = [
    "Manifest",
    "load_checkpoint",
    "load_hosted",
    "read_header",
    "read_manifest",
    "save_checkpoint",
    "write_atomically",
]

VERSION: Literal[1] = 1
MANIFEST = "policy.json"
LARGEST_MANIFEST = 16 << 20
LARGEST_HEADER = 16 << 20


@dataclass(frozen=True)
class Manifest:
    """The contents of ``policy.json``; ``training`` is what ``save_checkpoint`` was told."""

    version: Literal[1]
    architecture: Section
    contract: PolicyContract
    normalizer: Normalizer
    training: Section
    weights: str
    sha256: str
    bytes: int = within(0, 1 << 40)


def save_checkpoint(
    directory: str | Path, policy: TrainablePolicy, provenance: Mapping[str, Any]
) -> None:
    """Write ``policy`` (for one that is served, with averaged weights) and where it comes from.

    ``provenance`` is JSON: git commit, configuration, data, step, validation; NaN becomes null. A
    checkpoint that is there already is replaced.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in policy.state_dict().items()
    }
    data = save(tensors)
    digest = hashlib.sha256(data).hexdigest()
    weights = f"weights-{digest[:12]}.safetensors"
    manifest = {
        "version": VERSION,
        "architecture": policy.architecture,
        "contract": policy.contract.to_json(),
        "normalizer": policy.normalizer.to_json(),
        "training": plain(provenance),
        "weights": weights,
        "sha256": digest,
        "bytes": len(data),
    }
    text = json.dumps(manifest, indent=1, allow_nan=False)
    write_atomically(directory / weights, data)
    write_atomically(directory / MANIFEST, text.encode())
    for old in directory.glob("weights-*"):
        if old.name != weights:
            old.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """The whole of ``data`` at ``path``, or what was there before; on disk when this returns."""
    temporary = path.with_name(f"{path.name}.part")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_manifest(directory: str | Path) -> Manifest:
    """What a checkpoint says of itself. PolicyError where there is none, or it is damaged."""
    path = Path(directory) / MANIFEST
    try:
        if path.stat().st_size > LARGEST_MANIFEST:
            raise PolicyError(f"{path} is over {LARGEST_MANIFEST >> 20} MiB: not a checkpoint's")
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise PolicyError(
            f"{directory} holds no checkpoint: {MANIFEST}: {error.strerror}; give a directory that "
            "`robot-stack train` wrote, such as <run>/checkpoints/step_0010000"
        ) from error
    except ValueError as error:
        raise PolicyError(f"{path} is not JSON: {error}; save the checkpoint again") from error
    if not isinstance(values, dict) or values.get("version") != VERSION:
        version = values.get("version") if isinstance(values, dict) else None
        raise PolicyError(
            f"{path} has version {version!r}, this release reads {VERSION}; save the checkpoint "
            "with this release, or load it with the one that wrote it"
        )
    try:
        return parse(Manifest, values, str(path))
    except ConfigError as error:
        raise PolicyError(str(error)) from error


def load_checkpoint(
    directory: str | Path, device: str = "cpu", expected: PolicyContract | None = None
) -> TrainablePolicy:
    """The policy of a checkpoint in evaluation mode, on ``device``.

    PolicyError names what is missing or damaged; with code ``contract_mismatch`` it lists in what
    the checkpoint's contract differs from ``expected``.
    """
    manifest = read_manifest(directory)
    if expected is not None:
        found = manifest.contract.differences(expected)
        if found:
            raise PolicyError(
                f"{directory} is a policy for another interface: {'; '.join(found)}; load it "
                "where its features, rate and cameras are offered, or train one for this",
                "contract_mismatch",
            )
    path = Path(directory) / manifest.weights
    if path.name != manifest.weights:
        raise PolicyError(f"{directory}: weights {manifest.weights!r} lie outside of it; refused")
    try:
        policy = build(manifest.architecture, manifest.contract, manifest.normalizer)
    except ConfigError as error:
        raise PolicyError(f"{Path(directory) / MANIFEST}: {error}") from error
    _check(path, manifest, policy)
    try:
        policy.load_state_dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise PolicyError(f"{path} is damaged: {error}; save the checkpoint again") from error
    return policy.to(device).eval()


def load_hosted(
    strong: str | Path,
    weak: str | Path | None = None,
    device: str = "cpu",
    expected: PolicyContract | None = None,
    engine: EngineName = "eager",
    precision: Precision = "float32",
) -> Hosted:
    """A checkpoint to serve, with an early one of the same run for decoders that contrast.

    ``engine`` and ``precision`` as in ``policies.inference.fast.accelerate``; ``eager`` samples
    as training does. With a weak policy, engines with threads of their own have half of torch's
    each, and sample together.
    """
    threads = torch.get_num_threads()

    def load(directory: str | Path, threads: int) -> Policy:
        policy = load_checkpoint(directory, device, expected).requires_grad_(False)
        return accelerate(policy, engine, precision, threads)

    if weak is None:
        return Hosted(load(strong, threads))
    half = max(1, threads // 2)
    both = load(strong, half), load(weak, half)
    return Hosted(*both, together=threads > 1 and all(runs_alone(policy) for policy in both))


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Names of a safetensors file's tensors with their dtype and shape; no data is read.

    PolicyError where the header is longer than the file or than 16 MiB, or no such header.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 0 < length <= min(LARGEST_HEADER, size - 8):
                raise PolicyError(
                    f"{path} is no safetensors file: its header would take {length} of {size} "
                    f"bytes (allowed: {LARGEST_HEADER}); save the checkpoint again"
                )
            entries = json.loads(file.read(length))
        return {
            name: (str(entry["dtype"]), tuple(int(n) for n in entry["shape"]))
            for name, entry in entries.items()
            if name != "__metadata__"
        }
    except OSError as error:
        raise PolicyError(f"{path}: {error.strerror}; save the checkpoint again") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise PolicyError(f"{path} has a damaged header: {error!r}; save it again") from error


def _check(path: Path, manifest: Manifest, policy: TrainablePolicy) -> None:
    """PolicyError unless the file holds the bytes of the manifest and the tensors of the policy."""
    found = read_header(path)
    needed = {name: ("F32", tuple(t.shape)) for name, t in policy.state_dict().items()}
    for name in sorted({*found, *needed}):
        if found.get(name) != needed.get(name):
            raise PolicyError(
                f"{path} does not fit its architecture: {name} is {found.get(name, 'missing')}, "
                f"needed is {needed.get(name, 'no such tensor')}; save the checkpoint again"
            )
    size = path.stat().st_size
    if size != manifest.bytes:
        raise PolicyError(
            f"{path} has {size} bytes, {MANIFEST} says {manifest.bytes}; copy the checkpoint again"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != manifest.sha256:
        raise PolicyError(
            f"{path} is damaged: its SHA-256 is {digest[:12]}, {MANIFEST} says "
            f"{manifest.sha256[:12]}; copy the checkpoint again"
        )
