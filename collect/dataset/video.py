"""An episode as an mp4 that browsers play: all cameras tiled, with time, source and events."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from collect.jpeg import decode
from robot_stack.episode import Episode, Event
from robot_stack.errors import EpisodeError
from robot_stack.types import Difference, Source

__all__ = ["MAX_FPS", "Tiles", "encode", "write_video"]

MAX_FPS = 30.0  # a browser shows no more, and encoding every row at 50 Hz takes twice as long
EVENT_S = 2.0  # how long an event stays on the screen
STALE_S = 0.25  # a frame older than this at its row is marked
STRIP = 44
FONT = cv2.FONT_HERSHEY_SIMPLEX
WHITE, GREY, RED = (240, 240, 240), (150, 150, 150), (255, 90, 80)
SOURCE_COLOURS: dict[Source, tuple[int, int, int]] = {
    Source.NONE: (110, 110, 110),
    Source.DEMO: (80, 190, 120),
    Source.POLICY: (90, 140, 250),
    Source.HUMAN: (250, 170, 60),
    Source.RESIDUAL: (190, 110, 240),
    Source.SCRIPTED: (60, 200, 210),
    Source.REPLAY: (220, 210, 90),
    Source.SUPERVISOR: (230, 120, 170),
}

Image = NDArray[np.uint8]


def _text(image: Image, text: str, x: int, y: int, colour: tuple[int, int, int]) -> None:
    cv2.putText(image, text, (x + 1, y + 1), FONT, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    cv2.putText(image, text, (x, y), FONT, 0.5, colour, 1, cv2.LINE_AA)


class Tiles:
    """Draws rows of an episode: cameras in a grid, a strip of text below. RGB uint8 images."""

    def __init__(self, episode: Episode) -> None:
        if not episode.cameras:
            raise EpisodeError(f"{episode.path} has no camera; only plots can be made of it")
        self._episode = episode
        layouts = episode.schema.cameras
        self._cell_h = max(layout.height for layout in layouts.values())
        self._cell_w = max(layout.width for layout in layouts.values())
        self._across = math.ceil(math.sqrt(len(layouts)))
        down = math.ceil(len(layouts) / self._across)
        # H.264 with 4:2:0 chroma takes even sizes only.
        self.width = -(-max(self._across * self._cell_w, 320) // 2) * 2
        self.height = -(-(down * self._cell_h + STRIP) // 2) * 2
        self._canvas: Image = np.zeros((self.height, self.width, 3), np.uint8)
        self._t_ns = episode.t_ns
        self._seq = {name: episode.frame_seq(name) for name in episode.cameras}
        self._frame_t_ns = {name: episode.frame_t_ns(name) for name in episode.cameras}
        self._source = episode.source
        self._difference = episode.difference
        self._events = episode.events
        self._shown: dict[str, tuple[int, Image]] = {}

    def draw(self, row: int) -> Image:
        """The picture of one row, shape (height, width, 3); overwritten by the next call."""
        for i, name in enumerate(self._episode.cameras):
            self._draw_camera(i, name, row)
        self._draw_strip(row)
        return self._canvas

    def _image(self, name: str, row: int) -> Image:
        """The row's image; a frame repeated from the row before is not decoded again."""
        seq = int(self._seq[name][row])
        shown = self._shown.get(name)
        if shown is None or shown[0] != seq or seq < 0:
            shown = self._shown[name] = (seq, self._episode.image(name, row, decode))
        return shown[1]

    def _draw_camera(self, i: int, name: str, row: int) -> None:
        y = i // self._across * self._cell_h
        x = i % self._across * self._cell_w
        image = self._image(name, row)
        h, w = image.shape[:2]
        scale = min(self._cell_h / h, self._cell_w / w)
        if scale != 1.0:
            size = (round(w * scale), round(h * scale))
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.uint8)
            h, w = image.shape[:2]
        y0, x0 = y + (self._cell_h - h) // 2, x + (self._cell_w - w) // 2
        self._canvas[y0 : y0 + h, x0 : x0 + w] = image
        _text(self._canvas, name, x + 8, y + 20, WHITE)
        taken = int(self._frame_t_ns[name][row])
        age_s = (int(self._t_ns[row]) - taken) / 1e9
        if taken < 0:
            _text(self._canvas, "no frame yet", x + 8, y + 40, RED)
        elif age_s > STALE_S:
            _text(self._canvas, f"frame is {age_s:.1f} s old", x + 8, y + 40, RED)

    def _draw_strip(self, row: int) -> None:
        top = self.height - STRIP
        self._canvas[top:] = 24
        seconds = (int(self._t_ns[row]) - int(self._t_ns[0])) / 1e9
        source = Source(int(self._source[row]))
        self._canvas[top : top + 4, : int(self.width * (row + 1) / len(self._t_ns))] = (
            SOURCE_COLOURS[source]
        )
        _text(self._canvas, f"{seconds:6.2f} s  row {row}", 8, top + 22, WHITE)
        _text(self._canvas, source.name.lower(), 180, top + 22, SOURCE_COLOURS[source])
        bits = Difference(int(self._difference[row]))
        reasons = ", ".join(str(bit.name).lower() for bit in bits)
        _text(self._canvas, reasons, 280, top + 22, GREY)
        event = self._event(int(self._t_ns[row]))
        if event is not None:
            _text(self._canvas, f"{event.kind}: {event.text}", 8, top + 39, RED)

    def _event(self, t_ns: int) -> Event | None:
        """The newest event of the last seconds."""
        for event in reversed(self._events):
            if 0 <= t_ns - event.t_ns < EVENT_S * 1e9:
                return event
        return None


def write_video(episode: Episode, path: Path) -> int:
    """Write all cameras of an episode, tiled, to ``path`` (H.264, mp4); returns the frame count.

    It plays at the speed of recording; of rows above ``MAX_FPS`` every n-th is shown.
    """
    step = max(1, math.ceil(episode.schema.rate_hz / MAX_FPS))
    rate = Fraction(episode.schema.rate_hz / step).limit_denominator(1000)
    tiles = Tiles(episode)
    return encode(_pictures(tiles, len(episode), step), path, rate)


def encode(
    images: Iterable[Image],
    path: Path,
    rate: Fraction,
    options: Mapping[str, str] | None = None,
) -> int:
    """Write RGB ``images`` (H, W, 3), both even, to ``path`` (H.264, mp4) at ``rate`` a second;
    returns how many. ``options`` are libx264's. The file appears whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    frames = 0
    try:
        with av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as out:
            stream = out.add_stream("libx264", rate=rate)
            stream.pix_fmt = "yuv420p"
            stream.options = {"preset": "veryfast", "crf": "23", **(options or {})}
            for image in images:
                if not frames:
                    stream.height, stream.width = image.shape[:2]
                out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
                frames += 1
            out.mux(stream.encode())
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
    return frames


def _pictures(tiles: Tiles, rows: int, step: int) -> Iterator[Image]:
    return (tiles.draw(row) for row in range(0, rows, step))
