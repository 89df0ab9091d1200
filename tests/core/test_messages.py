"""The wire codec: what goes in comes out, and what is not a message is refused by name."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from robot_stack.errors import MessageError, RobotStackError
from robot_stack.messages import Message, decode, encode

ALLOWED = ["|b1", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8"]

arrays = hnp.arrays(
    st.sampled_from([np.dtype(code) for code in ALLOWED]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def as_received(message: Message) -> list[bytes]:
    return [bytes(frame) for frame in encode(message)]


@given(
    st.text(max_size=20),
    st.dictionaries(st.text(max_size=8), json_values, max_size=4),
    st.dictionaries(st.text(max_size=8), arrays, max_size=4),
    st.integers(0, 2**53),
)
def test_round_trip(kind, body, named, number):
    got = decode(as_received(Message(kind, body, named, number)))
    assert (got.kind, got.body, got.id) == (kind, body, number)
    assert got.arrays.keys() == named.keys()
    for name, array in named.items():
        assert got.arrays[name].dtype == array.dtype
        assert got.arrays[name].shape == array.shape
        assert got.arrays[name].tobytes() == array.tobytes()
        assert not got.arrays[name].flags.writeable


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_garbage_is_refused_by_name(frames):
    with pytest.raises(MessageError):
        decode(frames)


@given(st.data())
def test_a_damaged_message_is_a_message_error_or_another_message(data):
    frames = as_received(Message("k", {"a": [1, 2]}, {"x": np.arange(6.0).reshape(2, 3)}))
    which = data.draw(st.integers(0, len(frames) - 1))
    frame = bytearray(frames[which])
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
    frames[which] = bytes(frame[: data.draw(st.integers(0, len(frame)))])
    try:
        decode(frames)
    except RobotStackError as error:
        assert isinstance(error, MessageError)


def crafted(**changes):
    header = {"kind": "k", "id": 0, "body": {}, "arrays": []} | changes
    return b"RTS\x01" + json.dumps(header).encode()


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "empty"),
        ([b"XXX\x01{}"], "first bytes"),
        ([b"RTS\x02{}"], "version 2"),
        ([b"RTS"], "version none"),
        ([b"RTS\x01" + b" " * 70_000], "70004 bytes"),
        ([b"RTS\x01" + b"[" * 5000], "JSON"),
        ([crafted(id="1")], "id"),
        ([crafted(arrays=[{}])], "1 arrays described, 0 sent"),
        ([crafted(arrays=[{"name": "x", "dtype": "|O", "shape": [1]}]), b"12345678"], "'|O'"),
        ([crafted(arrays=[{"name": "x", "dtype": "<f8", "shape": [2]}]), b"1"], "16 bytes"),
        ([crafted(arrays=[{"name": "x", "dtype": "<f8", "shape": [-1]}]), b""], "valid shape"),
        (
            [crafted(arrays=[{"name": "x", "dtype": "<f8", "shape": [2**62, 2**62]}]), b""],
            "bytes",
        ),
    ],
)
def test_each_fault_is_named(frames, words):
    with pytest.raises(MessageError, match=words.replace("|", r"\|")):
        decode(frames)


def test_the_size_cap_counts_all_arrays():
    frames = as_received(Message("k", {}, {"x": np.zeros(100), "y": np.zeros(100)}))
    decode(frames, max_bytes=1600)
    with pytest.raises(MessageError, match="1599 bytes"):
        decode(frames, max_bytes=1599)


def test_object_arrays_and_nan_bodies_are_not_sent():
    with pytest.raises(MessageError, match="dtype object"):
        encode(Message("k", {}, {"x": np.array([None])}))
    with pytest.raises(MessageError, match="finite JSON"):
        encode(Message("k", {"x": float("nan")}))
