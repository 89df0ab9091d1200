"""A virtual environment with the readers of other projects, to open what we export.

lerobot and robomimic ask for other versions than ours (torch, huggingface_hub), so they get an
environment of their own in the user's cache; torch and other large packages are seen through from
this one. It is made once, on first use.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

# Without their dependencies: of the two only the dataset readers run here.
PROJECTS = ("lerobot==0.4.4", "robomimic==0.3.0", "torchvision==0.28.0", "accelerate==1.13.0")
DEPENDENCIES = (
    "datasets>=4,<5",
    "huggingface-hub>=0.34.2,<0.36",
    "pandas",
    "jsonlines",
    "einops",
    "deepdiff",
    "draccus==0.10.0",
    "termcolor",
    "tensorboardX",
    "six",
)

# What stands before every reader. torchvision's wheel is built for CUDA's torch, so its operators
# (of detection, not used here) don't load and are declared by name; and its VideoReader, which
# lerobot 0.4 decodes with where FFmpeg's libraries are not installed, is gone since 0.26: this one
# does the same with PyAV. Everything else is the projects' own code.
PRELUDE = """
import importlib.util, json, pathlib, re, sys
import numpy as np, torch
operators = torch.library.Library("torchvision", "DEF")
folder = importlib.util.find_spec("torchvision").submodule_search_locations[0]
source = pathlib.Path(folder, "_meta_registrations.py").read_text()
for name in set(re.findall(r'register_(?:meta|fake)\\("(?:torchvision::)?(\\w+)"', source)):
    operators.define(f"{name}() -> Tensor")
import av, torchvision


class VideoReader:
    def __init__(self, path, stream):
        self.container = av.open(path)

    def seek(self, seconds, keyframes_only=False):
        self.container.seek(int(seconds * 1e6), backward=True, any_frame=False)

    def __iter__(self):
        for frame in self.container.decode(video=0):
            pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            yield {"data": pixels, "pts": float(frame.pts * frame.time_base)}


torchvision.io.VideoReader = VideoReader
torchvision.set_video_backend = lambda name: None
"""


def _python() -> Path:
    """The environment's interpreter; made when it is not there yet."""
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    wanted = json.dumps([sys.version, PROJECTS, DEPENDENCIES, sys.prefix])
    folder = home / "robot-stack" / "venvs" / hashlib.sha256(wanted.encode()).hexdigest()[:12]
    folder.parent.mkdir(parents=True, exist_ok=True)
    python = folder / "bin" / "python"
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "complete").exists():
            return python
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        ours = sysconfig.get_path("purelib")
        (inside,) = folder.glob("lib/python*/site-packages")
        (inside / "ours.pth").write_text(ours + "\n")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--no-input"]
        subprocess.run([*pip, "--no-deps", *PROJECTS], check=True)
        subprocess.run([*pip, *DEPENDENCIES], check=True)
        (folder / "complete").touch()
    return python


def read(script: str, *arguments: object, home: Path) -> Any:
    """Run ``script`` after the prelude, with the arguments as ``sys.argv[1:]``; the JSON that it
    prints last. Nothing is fetched: the hub is offline, and its cache is in ``home``."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "HOME": str(home)}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(_python()), "-c", PRELUDE + script, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
