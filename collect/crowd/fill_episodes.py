"""Small real episodes for a simulated fortnight: two drawn arms reach, grasp and put down.

The files are what the recorder writes (50 rows a second, cameras at 10 Hz, JPEG); only the table
in front of the cameras is drawn instead of seen. A few of them are shared by hundreds of plays.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from collect.jpeg import encode_within
from robot_stack.episode import (
    EpisodeMetadata,
    EpisodeSchema,
    EpisodeWriter,
    ImageLayout,
    RobotLayout,
    Row,
)
from robot_stack.types import Source

__all__ = ["FRAME_ROWS", "ROWS", "draw_episode"]

JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
ROBOTS = ("follower_left", "follower_right")
CAMERAS = {"cam_high": ImageLayout(320, 240), "cam_low": ImageLayout(320, 240)}
RATE_HZ = 50.0
FRAME_ROWS = 5  # cameras at 10 Hz
ROWS = 400
QUALITY = 80
UPPER, FORE = 0.30, 0.30  # m, ViperX 300
BASE_X = 0.47  # m from the middle of the table to each arm's base
SHOULDER_Z = 0.13
SCALE = 230.0  # pixels a metre

Vector = NDArray[np.float64]
Image = NDArray[np.uint8]
Colour = tuple[int, int, int]

WOOD, WOOD_DARK, EDGE = (196, 164, 124), (176, 143, 104), (120, 92, 62)
ARM, JOINT, FINGER = (52, 56, 64), (92, 98, 110), (28, 30, 34)
SWEETS = ((214, 64, 78), (238, 168, 52), (92, 168, 92), (88, 120, 206), (180, 92, 170))
WALL, CRATE, STEEL, BAG = (224, 226, 222), (236, 232, 220), (150, 160, 172), (204, 224, 236)


@dataclass(frozen=True)
class _Key:
    """Where a gripper is (m, from the middle of the table) at a row, and how far it is open."""

    row: int
    x: float
    y: float
    z: float
    open: float


def draw_episode(path: Path, scene: int, *, success: bool, uuid: str, task: str, seed: int) -> Path:
    """One episode of ``ROWS`` rows at ``path``, which must not exist. ``scene``: which of
    `fill_plan.SCENES` is on the table; with ``success`` the sweet arrives."""
    draw = random.Random(seed)
    sweet = np.array([draw.uniform(-0.05, 0.05), draw.uniform(-0.05, 0.06), 0.02])
    goal = np.array([draw.uniform(-0.06, 0.02), -0.2, 0.02])
    keys = _motion(sweet, goal, scene, success, draw)
    hands = [_interpolate(side) for side in keys]
    held = np.array([side[:, 3] < 0.4 for side in hands])
    q = np.concatenate([_joints(side, n) for n, side in enumerate(hands)], axis=1)
    noise = np.random.default_rng(seed)
    measured = q + noise.normal(0.0, 0.002, q.shape)
    speed = np.gradient(measured, 1.0 / RATE_HZ, axis=0)
    now_ns = time.monotonic_ns()
    period_ns = int(1e9 / RATE_HZ)
    base_ns = now_ns - ROWS * period_ns
    writer = EpisodeWriter(
        path,
        EpisodeSchema(
            robots=tuple(RobotLayout(name, JOINTS) for name in ROBOTS),
            cameras=CAMERAS,
            rate_hz=RATE_HZ,
            sim=True,
        ),
        _metadata(uuid, task),
    )
    at = sweet.copy()
    images: dict[str, bytes] = {}
    grasped = False
    try:
        for i in range(ROWS):
            right = hands[1][i]
            near = float(np.linalg.norm(right[:3] - at)) < 0.05
            grasped = bool(held[1][i]) and success and (grasped or near)
            if grasped:
                at = right[:3].copy()
            elif at[2] > 0.02:
                at[2] = max(0.02, at[2] - 0.02)
            if i % FRAME_ROWS == 0:
                pair = (hands[0][i], right)
                images = {
                    "cam_high": _jpeg("cam_high", _from_above(pair, at, scene)),
                    "cam_low": _jpeg("cam_low", _from_the_front(pair, at, scene)),
                }
            t_ns = base_ns + i * period_ns
            frame_ns = base_ns + i // FRAME_ROWS * FRAME_ROWS * period_ns
            writer.append(
                Row(
                    t_ns=t_ns,
                    qpos=measured[i],
                    qvel=speed[i],
                    effort=np.full(14, np.nan),
                    action=q[min(i + 2, ROWS - 1)],
                    action_sent=q[min(i + 1, ROWS - 1)],
                    state_t_ns=[t_ns - 1_000_000] * len(ROBOTS),
                    images=images,
                    frame_t_ns=dict.fromkeys(CAMERAS, frame_ns),
                    frame_seq=dict.fromkeys(CAMERAS, i // FRAME_ROWS),
                    source=Source.DEMO,
                    token=1,
                )
            )
        return writer.finalise(success=success, labeller="simulated")
    except BaseException:
        if not path.exists():
            writer.discard()
        raise


def _metadata(uuid: str, task: str) -> EpisodeMetadata:
    names = [f"{robot}/{joint}" for robot in ROBOTS for joint in JOINTS]
    return EpisodeMetadata(
        uuid=uuid,
        station="cafe",
        task=task,
        task_id=task,
        robots={
            robot: {"embodiment": "vx300s", "joints": list(JOINTS), "serial": None}
            for robot in ROBOTS
        },
        cameras={
            name: {"width": size.width, "height": size.height, "fps": RATE_HZ / FRAME_ROWS}
            for name, size in CAMERAS.items()
        },
        action={
            "kind": "absolute joint position",
            "rate_hz": RATE_HZ,
            "names": names,
            "units": (["rad"] * 6 + ["fraction"]) * 2,
            "lower": ([-3.14] * 6 + [0.0]) * 2,
            "upper": ([3.14] * 6 + [1.0]) * 2,
        },
        extra={"provenance": "drawn by robot-stack crowd demo; no robot has done this"},
    )


def _jpeg(camera: str, image: Image) -> bytes:
    layout = CAMERAS[camera]
    return encode_within(image, QUALITY, layout.width * layout.height // 2)[0]


# -- motion ------------------------------------------------------------------------------------


def _motion(
    sweet: Vector, goal: Vector, scene: int, success: bool, draw: random.Random
) -> tuple[list[_Key], list[_Key]]:
    """Keyframes of the left arm, which helps where two are needed, and the right one."""
    x, y, _ = sweet
    miss = 0.0 if success else draw.uniform(0.05, 0.08)
    right = [
        _Key(0, 0.30, 0.0, 0.25, 0.1),
        _Key(60, x + 0.12, y, 0.20, 0.9),
        _Key(110, x + miss, y + miss, 0.12, 0.9),
        _Key(150, x + miss, y + miss, 0.02, 0.9),
        _Key(175, x + miss, y + miss, 0.02, 0.1),
        _Key(225, x + 0.05, y - 0.05, 0.18, 0.1),
        _Key(280, goal[0], goal[1], 0.12, 0.1),
        _Key(310, goal[0], goal[1], 0.03, 0.1),
        _Key(330, goal[0], goal[1], 0.04, 0.9),
        _Key(399, 0.30, 0.0, 0.25, 0.1),
    ]
    helps = scene > 0
    left = [
        _Key(0, -0.30, 0.0, 0.25, 0.1),
        _Key(90, -0.18 if helps else -0.30, 0.10, 0.16 if helps else 0.24, 0.8),
        _Key(130, -0.16 if helps else -0.29, 0.10, 0.08 if helps else 0.25, 0.2),
        _Key(250, -0.17 if helps else -0.30, 0.09, 0.09 if helps else 0.24, 0.2),
        _Key(399, -0.30, 0.0, 0.25, 0.1),
    ]
    return left, right


def _interpolate(keys: list[_Key]) -> Vector:
    """(ROWS, 4): x, y, z and opening, at rest at each keyframe (cubic ease)."""
    rows = np.arange(ROWS)
    at = np.array([key.row for key in keys])
    values = np.array([(key.x, key.y, key.z, key.open) for key in keys])
    before = np.clip(np.searchsorted(at, rows, "right") - 1, 0, len(keys) - 2)
    share = np.clip((rows - at[before]) / (at[before + 1] - at[before]), 0.0, 1.0)
    eased = (share * share * (3.0 - 2.0 * share))[:, None]
    return np.asarray(values[before] * (1.0 - eased) + values[before + 1] * eased)


def _joints(hand: Vector, side: int) -> Vector:
    """(ROWS, 7) joints of an arm whose fingers point down at ``hand``: waist, two links, wrist."""
    base = BASE_X if side else -BASE_X
    dx = (hand[:, 0] - base) * (-1.0 if side else 1.0)
    dy = hand[:, 1]
    waist = np.arctan2(dy, dx) * (-1.0 if side else 1.0)
    reach = np.hypot(dx, dy)
    height = hand[:, 2] + 0.12 - SHOULDER_Z
    distance = np.clip(np.hypot(reach, height), 0.05, UPPER + FORE - 1e-3)
    bend = np.arccos(np.clip((UPPER**2 + FORE**2 - distance**2) / (2.0 * UPPER * FORE), -1.0, 1.0))
    lift = np.arctan2(height, reach) + np.arccos(
        np.clip((UPPER**2 + distance**2 - FORE**2) / (2.0 * UPPER * distance), -1.0, 1.0)
    )
    elbow = np.pi - bend
    wrist = np.pi / 2 - (elbow - lift)
    zero = np.zeros(len(hand))
    return np.stack([waist, lift - np.pi / 2, elbow, zero, wrist, zero, hand[:, 3]], axis=1)


def _chain(hand: Vector, side: int) -> list[Vector]:
    """Shoulder, elbow, wrist and fingertip (m) of an arm at ``hand``."""
    base = np.array([BASE_X if side else -BASE_X, 0.0, SHOULDER_Z])
    wrist = np.array([hand[0], hand[1], hand[2] + 0.12])
    span = wrist - base
    distance = min(float(np.linalg.norm(span)), UPPER + FORE - 1e-3)
    along = span / np.linalg.norm(span)
    up = np.array([0.0, 0.0, 1.0]) - along * along[2]
    up /= np.linalg.norm(up)
    height = np.sqrt(max(UPPER**2 - (distance / 2) ** 2, 0.0))
    return [base, base + along * distance / 2 + up * height, wrist, hand[:3]]


# -- drawing -----------------------------------------------------------------------------------


def _from_above(hands: tuple[Vector, Vector], sweet: Vector, scene: int) -> Image:
    image = np.empty((240, 320, 3), np.uint8)
    image[:] = WOOD
    for y in range(0, 240, 30):
        cv2.line(image, (0, y), (320, y), WOOD_DARK, 1)

    def point(at: Vector) -> tuple[int, int]:
        # A camera above: what is higher looks larger and farther from the middle.
        scale = SCALE * (1.0 + 0.35 * float(at[2]))
        return round(160 + scale * float(at[0])), round(120 - scale * float(at[1]))

    _props_above(image, scene, point)
    _disc(image, point(sweet), 6, SWEETS[0])
    for side, hand in enumerate(hands):
        chain = [point(at) for at in _chain(hand, side)]
        _arm(image, chain, float(hand[3]), across=True)
    return image


def _from_the_front(hands: tuple[Vector, Vector], sweet: Vector, scene: int) -> Image:
    image = np.empty((240, 320, 3), np.uint8)
    image[:] = WALL
    image[168:] = WOOD
    image[168:171] = EDGE

    def point(at: Vector) -> tuple[int, int]:
        # Seen from the visitor's place, a little from above.
        near = 1.0 - 0.5 * float(at[1])
        x = 160 + SCALE * near * float(at[0])
        return round(x), round(188 - 60 * float(at[1]) - SCALE * near * float(at[2]))

    _props_front(image, scene, point)
    _disc(image, point(sweet), 6, SWEETS[0])
    for side, hand in enumerate(hands):
        chain = [point(at) for at in _chain(hand, side)]
        _arm(image, chain, float(hand[3]), across=False)
    return image


def _arm(image: Image, chain: list[tuple[int, int]], opening: float, *, across: bool) -> None:
    cv2.rectangle(
        image, (chain[0][0] - 15, chain[0][1] - 15), (chain[0][0] + 15, chain[0][1] + 15), JOINT, -1
    )
    for first, second, width in zip(chain, chain[1:], (13, 10, 7), strict=False):
        cv2.line(image, first, second, ARM, width, cv2.LINE_AA)
    for at in chain[:-1]:
        _disc(image, at, 6, JOINT)
    x, y = chain[-1]
    gap = round(3 + 8 * opening)
    for side in (-1, 1):
        if across:
            cv2.line(image, (x - 7, y + side * gap), (x + 7, y + side * gap), FINGER, 4)
        else:
            cv2.line(image, (x + side * gap, y - 12), (x + side * gap, y + 2), FINGER, 4)


def _props_above(image: Image, scene: int, point: object) -> None:
    at = point  # keeps the two views' signatures alike
    assert callable(at)
    corner, far = at(np.array([-0.11, -0.09, 0.0])), at(np.array([0.11, 0.1, 0.0]))
    if scene == 2:
        cv2.rectangle(image, corner, far, BAG, -1)
        cv2.rectangle(image, corner, far, STEEL, 1)
        cv2.line(image, (corner[0], far[1] + 6), (far[0], far[1] + 6), SWEETS[3], 2)
    else:
        cv2.rectangle(image, corner, far, CRATE, -1)
        cv2.rectangle(image, corner, far, EDGE, 4)
    for n in range(9):
        spot = at(np.array([-0.08 + 0.02 * n, 0.06 - 0.11 * ((n * 5) % 7) / 7, 0.0]))
        _disc(image, spot, 5, SWEETS[n % 5])
    if scene == 1:
        _disc(image, at(np.array([-0.2, 0.16, 0.0])), 22, STEEL)
        _disc(image, at(np.array([-0.2, 0.16, 0.0])), 15, SWEETS[2])
    cv2.circle(image, at(np.array([-0.02, -0.2, 0.0])), 24, (250, 250, 250), -1, cv2.LINE_AA)
    cv2.circle(image, at(np.array([-0.02, -0.2, 0.0])), 24, STEEL, 1, cv2.LINE_AA)


def _props_front(image: Image, scene: int, point: object) -> None:
    at = point
    assert callable(at)
    corner, far = at(np.array([-0.11, 0.0, 0.0])), at(np.array([0.11, 0.0, 0.07]))
    cv2.ellipse(
        image,
        at(np.array([-0.02, -0.2, 0.0])),
        (26, 8),
        0,
        0,
        360,
        (250, 250, 250),
        -1,
        cv2.LINE_AA,
    )
    for n in range(7):
        _disc(image, (corner[0] + 8 + 6 * n, far[1] + 2 + (n * 3) % 5), 5, SWEETS[n % 5])
    cv2.rectangle(image, corner, far, BAG if scene == 2 else CRATE, -1)
    cv2.rectangle(image, corner, far, STEEL if scene == 2 else EDGE, 2)
    if scene == 1:
        low, high = at(np.array([-0.24, 0.16, 0.0])), at(np.array([-0.16, 0.16, 0.24]))
        cv2.rectangle(image, low, high, STEEL, -1)
        cv2.rectangle(image, (low[0] + 3, high[1] + 6), (high[0] - 3, high[1] + 40), SWEETS[2], -1)


def _disc(image: Image, at: tuple[int, int], radius: int, colour: Colour) -> None:
    cv2.circle(image, at, radius, colour, -1, cv2.LINE_AA)
    rim: Colour = (colour[0] * 3 // 4, colour[1] * 3 // 4, colour[2] * 3 // 4)
    cv2.circle(image, at, radius, rim, 1, cv2.LINE_AA)
