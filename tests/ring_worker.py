"""Child process of test_shared_memory: writes or reads rings as told on standard input, in JSON.

``{"do": "write", "path", "words", "slots", "how"}`` writes until the next line arrives, then
answers with the count. With ``"fork": true`` a child does it and is left to be killed; with
``"stop_at": n`` it stops itself (SIGSTOP) in the middle of record n.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from robot_stack.shared_memory import Ring, RingWriter


def record_dtype(words: int) -> np.dtype[Any]:
    return np.dtype([("index", "<i8"), ("words", "<i8", (words,)), ("last", "<i8")])


def write_one(ring: RingWriter, index: int, how: str, stop: bool) -> None:
    if how == "publish" and not stop:
        record = np.zeros(1, ring.dtype)
        record["index"] = record["words"] = record["last"] = index
        ring.publish(record[0])
        return
    with ring.writing() as record:
        words = record["words"]
        half = len(words) // 2
        record["index"] = index
        words[:half] = index
        if stop:
            os.kill(os.getpid(), signal.SIGSTOP)
        words[half:] = index
        record["last"] = index


def write(order: dict[str, Any], forever: bool) -> int:
    dtype = record_dtype(order["words"])
    with RingWriter(Path(order["path"]), dtype, order["slots"], {"by": os.getpid()}) as ring:
        if not forever:
            print("ready", flush=True)
        while True:
            write_one(ring, ring.count, order["how"], ring.count == order.get("stop_at", -1))
            if not forever and ring.count % 8 == 0 and select.select([sys.stdin], [], [], 0)[0]:
                return ring.count


def read(order: dict[str, Any]) -> None:
    """Copy the newest record for ever; with ``hold`` stop while looking at it in place."""
    with Ring(Path(order["path"]), timeout_s=20) as ring:
        while True:
            if order.get("hold") and ring.count > 1:
                view = ring.view(ring.count - 1)
                if view is not None:
                    os.kill(os.getpid(), signal.SIGSTOP)
            ring.latest()


def fork(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        if order["do"] == "write":
            write(order, forever=True)
        else:
            read(order)
    finally:
        os._exit(1)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # killed children leave no zombies
    # Unbuffered: select() must see what has not been read yet.
    stream = os.fdopen(0, "rb", buffering=0)
    while line := stream.readline():
        order = json.loads(line)
        if order["do"] == "end":
            continue
        if order.get("fork"):
            print(fork(order), flush=True)
        else:
            print(write(order, forever=False), flush=True)


if __name__ == "__main__":
    main()
