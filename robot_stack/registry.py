"""One table of names: robots, cameras, teleoperators, guards, doctors. Resolved on use.

Other distributions add rows through entry points in the group ``robot_stack.<kind>``.
"""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import entry_points
from typing import Any

from robot_stack.errors import MissingDependencyError, RegistryError

__all__ = ["EXTRAS", "REGISTRY", "load", "missing_dependency", "names"]

REGISTRY: dict[str, dict[str, str]] = {
    "robot": {
        "aloha": "hardware.aloha.arm:AlohaArm",
        "franka": "hardware.franka.arm:FrankaArm",
    },
    "camera": {
        "realsense": "hardware.cameras.realsense:RealSenseCamera",
        "opencv": "hardware.cameras.opencv:OpenCVCamera",
        "simulated": "hardware.cameras.simulated:SimulatedCamera",
        "replay": "hardware.cameras.replay:ReplayCamera",
        "test_pattern": "hardware.cameras.test_pattern:TestPatternCamera",
    },
    "teleop": {
        "leader_arms": "hardware.teleop.leader:LeaderArms",
        "browser": "hardware.teleop.browser:BrowserTeleoperator",
        "gello": "hardware.teleop.gello:Gello",
        "spacemouse": "hardware.teleop.spacemouse:SpaceMouse",
        "gamepad": "hardware.teleop.gamepad:Gamepad",
        "keyboard": "hardware.teleop.keyboard:Keyboard",
        "twists": "hardware.teleop.twists:Twists",
    },
    "guard": {
        "aloha_cell": "hardware.worlds.collision:MujocoCollisionGuard",
    },
    "policy": {
        "act": "policies.act:ActPolicy",
        "diffusion": "policies.diffusion:DiffusionPolicy",
        "flow": "policies.flow:FlowPolicy",
    },
    "decoder": {
        "receding_horizon": "policies.decoding.receding_horizon:RecedingHorizon",
        "temporal_ensemble": "policies.decoding.temporal_ensemble:TemporalEnsemble",
        "warm_start": "policies.decoding.warm_start:WarmStart",
        "ema": "policies.decoding.ema:Ema",
        "coherence": "policies.decoding.coherence:Coherence",
        "bid": "policies.decoding.bid:Bid",
        "bid_warm": "policies.decoding.bid:BidWarm",
        "rtc": "policies.decoding.rtc:Rtc",
    },
    "world": {
        "pusht": "collect.evaluation.pusht:PushTWorld",
        "aloha-transfer": "collect.evaluation.aloha:AlohaTransferWorld",
    },
    "scene": {
        "aloha_transfer_cube": "hardware.worlds.aloha:aloha_transfer_cube",
        "franka_pick_place": "hardware.worlds.franka:franka_pick_place",
    },
    "doctor": {
        "aloha": "hardware.aloha.doctor:checks",
        "cameras": "hardware.cameras.doctor:checks",
        "franka": "hardware.franka.doctor:checks",
        "input": "hardware.input.doctor:checks",
        "teleop": "hardware.teleop.doctor:checks",
    },
}

# Which extra brings the package that a missing import names.
EXTRAS = {
    "dynamixel_sdk": "aloha",
    "sqlalchemy": "crowd",
    "alembic": "crowd",
    "limits": "crowd",
    "structlog": "crowd",
    "jinja2": "crowd",
    "confusable_homoglyphs": "crowd",
    "js_lib_htmx": "crowd",
    "cryptography": "crowd",
    "prometheus_client": "crowd",
    "psycopg": "crowd",
    "pwdlib": "crowd",
    "pyotp": "crowd",
    "segno": "crowd",
    "franky": "franka",
    "panda_py": "franka",
    "serial": "aloha",
    "mujoco": "sim",
    "gym_aloha": "sim",
    "cv2": "cameras",
    "pyrealsense2": "realsense",
    "av": "collect",
    "matplotlib": "collect",
    "fastapi": "web",
    "uvicorn": "web",
    "torch": "policy",
    "safetensors": "policy",
    "tensorboard": "train",
    "gym_pusht": "pusht",
    "gymnasium": "pusht",
    "shapely": "pusht",
    "zarr": "pusht",
    "openvino": "openvino",
    "websockets": "openpi",
    "msgpack": "openpi",
    "pyarrow": "lerobot",
}

# Debian's package of a system library that a wheel expects.
SYSTEM_PACKAGES = {
    "libusb-1.0": "libusb-1.0-0",
    "libEGL": "libegl1",
    "libGL": "libgl1",
}


def names(kind: str) -> list[str]:
    """All names of a kind, built in and from entry points."""
    return sorted({*REGISTRY[kind], *(e.name for e in entry_points(group=f"robot_stack.{kind}"))})


def load(kind: str, name: str) -> Any:
    """The class behind a name. RegistryError for unknown names, with the nearest one;
    MissingDependencyError with the command that installs what its module imports."""
    row = REGISTRY[kind].get(name)
    if row is None:
        for entry in entry_points(group=f"robot_stack.{kind}"):
            if entry.name == name:
                row = entry.value
                break
    if row is None:
        known = names(kind)
        close = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise RegistryError(f"no {kind} is called {name!r}{hint} (known: {', '.join(known)})")
    module, _, attribute = row.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        missing = missing_dependency(f"{kind} {name!r}", error)
        if missing is None:
            raise
        raise missing from error


def missing_dependency(who: str, error: ImportError) -> MissingDependencyError | None:
    """What ``who`` lacks and the command that installs it; None when it is no extra's package."""
    package = (error.name or "").partition(".")[0]
    extra = EXTRAS.get(package)
    if extra is None:
        return None
    if isinstance(error, ModuleNotFoundError):
        return MissingDependencyError(
            f"{who} needs the package {package!r}: pip install 'robot-stack[{extra}]'"
        )
    library = next((lib for lib in SYSTEM_PACKAGES if lib in str(error)), None)
    mend = f"sudo apt-get install -y {SYSTEM_PACKAGES[library]}" if library else "reinstall it"
    return MissingDependencyError(
        f"{who} needs the package {package!r}, which does not load ({error}): {mend}"
    )
