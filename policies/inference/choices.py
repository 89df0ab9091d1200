"""The engines and precisions by name; needs no torch, so that commands can list them."""

from __future__ import annotations

from typing import Literal, get_args

__all__ = ["ENGINES", "PRECISIONS", "EngineName", "Precision"]

EngineName = Literal["auto", "openvino", "torch", "eager"]
Precision = Literal["float32", "bfloat16"]

ENGINES: tuple[EngineName, ...] = get_args(EngineName)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
