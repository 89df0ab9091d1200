"""The packet codec, both ways, against vectors from the e-manual and dynamixel_sdk's encoder."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from dynamixel_sdk import Protocol2PacketHandler
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hardware.dynamixel.group import SyncRead, SyncWrite
from hardware.dynamixel.packet import (
    CrcTable,
    Decoder,
    Instruction,
    Packet,
    crc16,
    encode,
    encode_status,
    stuff,
    unstuff,
)
from hardware.dynamixel.port import PacketProtocol

FAST = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
FULL = settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))

# Plain random bytes hardly ever hold the pattern that stuffing is about.
nasty = st.lists(st.sampled_from([0xFF, 0xFD, 0x00, 0x55, 0x01]), max_size=60).map(bytes)
parameters = st.one_of(st.binary(max_size=200), nasty)
ids = st.one_of(st.integers(0, 252), st.just(254))
instructions = st.sampled_from(list(Instruction))
SDK = Protocol2PacketHandler()


def sdk_crc(data: bytes) -> int:
    return int(SDK.updateCRC(0, data, len(data)))


class SdkPort:
    """Keeps what the SDK's packet handler writes; answers with prepared bytes."""

    def __init__(self, answer: bytes = b"") -> None:
        self.is_using = False
        self.written = b""
        self._answer = answer

    def clearPort(self) -> None:
        pass

    def writePort(self, packet: list[int]) -> int:
        self.written += bytes(packet)
        return len(packet)

    def readPort(self, length: int) -> bytes:
        data, self._answer = self._answer[:length], self._answer[length:]
        return data

    def isPacketTimeout(self) -> bool:
        return not self._answer


def sdk_encode(handler: Protocol2PacketHandler, servo_id: int, inst: int, data: bytes) -> bytes:
    packet = [0] * (10 + len(data))
    packet[4] = servo_id
    packet[5] = (len(data) + 3) & 0xFF
    packet[6] = (len(data) + 3) >> 8
    packet[7] = inst
    packet[8 : 8 + len(data)] = data
    port = SdkPort()
    handler.txPacket(port, packet)
    return port.written


def check_encoder(servo_id: int, inst: int, data: bytes) -> None:
    packet = encode(servo_id, inst, data)
    if b"\xff\xff\xfd" not in data and not (bytes((inst,)) + data).startswith(b"\xff\xff\xfd"):
        assert packet == sdk_encode(SDK, servo_id, inst, data)
    # With stuffing the SDK's own encoder is wrong; ours through its handler must agree with ours.
    assert packet == sdk_encode(PacketProtocol(), servo_id, inst, data)
    assert b"\xff\xff\xfd\x00" not in packet[1:-2]
    assert list(Decoder().feed(packet)) == [Packet(servo_id, inst, data, len(packet))]


@FAST
@given(ids, instructions, parameters)
def test_encoder_agrees_with_the_sdk_and_decodes(servo_id: int, inst: int, data: bytes) -> None:
    check_encoder(servo_id, inst, data)


@pytest.mark.exhaustive
@FULL
@given(ids, instructions, parameters)
def test_encoder_agrees_with_the_sdk_10000(servo_id: int, inst: int, data: bytes) -> None:
    check_encoder(servo_id, inst, data)


def check_status(servo_id: int, error: int, data: bytes) -> None:
    answer, result = PacketProtocol().rxPacket(SdkPort(encode_status(servo_id, error, data)), False)
    assert result == 0
    assert answer[4] == servo_id
    length = answer[5] | answer[6] << 8
    assert answer[8] == error
    assert bytes(answer[9 : 7 + length - 2]) == data


@FAST
@given(st.integers(0, 252), st.integers(0, 255), parameters)
def test_status_packets_pass_the_sdk_whole(servo_id: int, error: int, data: bytes) -> None:
    check_status(servo_id, error, data)


@pytest.mark.exhaustive
@FULL
@given(st.integers(0, 252), st.integers(0, 255), parameters)
def test_status_packets_pass_the_sdk_whole_10000(servo_id: int, error: int, data: bytes) -> None:
    check_status(servo_id, error, data)


stream = st.lists(st.tuples(ids, instructions, parameters), max_size=6)


def check_stream(
    packets: list[tuple[int, int, bytes]], noise: list[bytes], cuts: list[int]
) -> None:
    sent = b""
    for n, packet in enumerate(packets):
        sent += noise[n % len(noise)] if noise else b""
        sent += encode(*packet)
    decoder = Decoder()
    found = []
    edges = sorted({0, len(sent), *(cut % (len(sent) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(edges):
        found += [(p.servo_id, p.instruction, p.parameters) for p in decoder.feed(sent[start:end])]
    assert found == packets


# Noise without FF cannot be taken for the beginning of a header.
quiet_noise = st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\xff", b"\xfe")))


@FAST
@given(stream, quiet_noise, st.lists(st.integers(0, 2000), max_size=8))
def test_packets_survive_noise_and_any_cutting(
    packets: list[tuple[int, int, bytes]], noise: list[bytes], cuts: list[int]
) -> None:
    check_stream(packets, noise, cuts)


@pytest.mark.exhaustive
@FULL
@given(stream, quiet_noise, st.lists(st.integers(0, 2000), max_size=8))
def test_packets_survive_noise_and_any_cutting_10000(
    packets: list[tuple[int, int, bytes]], noise: list[bytes], cuts: list[int]
) -> None:
    check_stream(packets, noise, cuts)


@FAST
@given(parameters, st.integers(0, 10_000), st.integers(0, 7), parameters)
def test_a_damaged_packet_is_never_taken_for_good(
    data: bytes, where: int, bit: int, after: bytes
) -> None:
    packet = bytearray(encode(7, Instruction.WRITE, data))
    packet[where % len(packet)] ^= 1 << bit
    decoder = Decoder()
    good = [p for p in decoder.feed(bytes(packet)) if p.crc_ok]
    assert good == []
    # A damaged length may ask for more; once that is given up the next packet is found.
    follower = encode(9, Instruction.WRITE, after)
    found = [p for p in decoder.feed(follower) if p.crc_ok]
    if not found:
        decoder.clear()
        found = [p for p in decoder.feed(follower) if p.crc_ok]
    assert (found[-1].servo_id, found[-1].parameters) == (9, after)


@FAST
@given(nasty)
def test_stuffing_is_undone(data: bytes) -> None:
    assert unstuff(stuff(data)) == data
    assert b"\xff\xff\xfd\x00" not in stuff(data)


def test_the_case_on_which_the_sdk_loses_a_byte() -> None:
    data = bytes.fromhex("ff ff fd ff fd fd")
    packet = encode_status(1, 0, data)
    broken, _ = Protocol2PacketHandler().rxPacket(SdkPort(packet), False)
    assert bytes(broken[9:15]) != data, "the SDK has been mended: drop Protocol.removeStuffing"
    whole, _ = PacketProtocol().rxPacket(SdkPort(packet), False)
    assert bytes(whole[9:15]) == data


def test_the_case_that_the_sdk_never_stuffs() -> None:
    data = bytes.fromhex("74 00 ff ff fd 00")
    assert sdk_encode(SDK, 1, 3, data) != encode(1, 3, data), "the SDK stuffs now"


def test_vectors_of_the_manual() -> None:
    # The examples of the protocol page for PING, and its status packet of a model 1030.
    assert encode(1, 1) == bytes.fromhex("ff ff fd 00 01 03 00 01 19 4e")
    status = bytes.fromhex("ff ff fd 00 01 07 00 55 00 06 04 26 65 5d")
    assert encode_status(1, 0, bytes((0x06, 0x04, 0x26))) == status


@FAST
@given(st.binary(max_size=80))
def test_crc_agrees_with_the_sdk(data: bytes) -> None:
    assert crc16(data) == sdk_crc(data)
    if data:
        assert int(CrcTable(len(data))(np.frombuffer(data, np.uint8))) == sdk_crc(data)


def test_refuses_what_is_no_packet() -> None:
    with pytest.raises(ValueError, match="253"):
        encode(253, 1)
    with pytest.raises(ValueError, match="1024"):
        encode(1, 3, bytes(1100))


values = st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=9)
nasty_values = st.lists(
    st.sampled_from([-1, -3, -769, -2, 0xFDFFFF, -0x300]), min_size=1, max_size=9
)


@FAST
@given(st.one_of(values, nasty_values))
def test_patched_sync_writes_equal_built_ones(goals: list[int]) -> None:
    numbers = list(range(1, len(goals) + 1))
    body = b"".join(
        bytes((n,)) + g.to_bytes(4, "little", signed=True)
        for n, g in zip(numbers, goals, strict=True)
    )
    built = encode(254, Instruction.SYNC_WRITE, bytes((116, 0, 4, 0)) + body)
    write = SyncWrite(numbers, 116, 4)
    write.packet(np.full(len(goals), 7))  # leaves no trace
    assert write.packet(np.array(goals)) == built


rows = st.lists(
    st.tuples(
        st.sampled_from([0, 0x80]),
        st.one_of(
            st.binary(min_size=10, max_size=10),
            st.lists(st.sampled_from([0xFF, 0xFD, 0]), min_size=10, max_size=10).map(bytes),
        ),
    ),
    min_size=1,
    max_size=9,
)


def fast_answer(answers: list[tuple[int, bytes]]) -> bytes:
    total = 1 + 14 * len(answers)
    out = b"\xff\xff\xfd\x00\xfe" + total.to_bytes(2, "little") + b"\x55"
    for n, (error, data) in enumerate(answers, 1):
        out += bytes((error, n)) + data
        out += sdk_crc(out).to_bytes(2, "little")
    return out


@FAST
@given(rows, st.booleans(), st.lists(st.integers(0, 250), max_size=4))
def test_sync_answers_are_read_in_any_pieces(
    answers: list[tuple[int, bytes]], fast: bool, cuts: list[int]
) -> None:
    read = SyncRead(range(1, len(answers) + 1), 126, 10, fast=fast)
    if fast:
        sent = fast_answer(answers)
    else:
        sent = b"".join(encode_status(n, e, d) for n, (e, d) in enumerate(answers, 1))
    read.start()
    edges = sorted({0, len(sent), *(cut % (len(sent) + 1) for cut in cuts)})
    done = [read.parse(sent[start:end]) for start, end in itertools.pairwise(edges)]
    assert done[-1]
    assert read.got.all()
    assert read.errors.tolist() == [error for error, _ in answers]
    assert [row.tobytes() for row in read.data] == [data for _, data in answers]


@FAST
@given(rows, st.booleans(), st.integers(0, 10_000), st.integers(0, 7))
def test_a_damaged_sync_answer_costs_only_what_is_damaged(
    answers: list[tuple[int, bytes]], fast: bool, where: int, bit: int
) -> None:
    read = SyncRead(range(1, len(answers) + 1), 126, 10, fast=fast)
    if fast:
        parts = [fast_answer(answers)]
    else:
        parts = [encode_status(n, e, d) for n, (e, d) in enumerate(answers, 1)]
    sent = bytearray(b"".join(parts))
    place = where % len(sent)
    sent[place] ^= 1 << bit
    read.start()
    read.parse(bytes(sent))
    read.finish()
    for n in np.flatnonzero(read.got):
        assert read.data[n].tobytes() == answers[n][1]
        assert read.errors[n] == answers[n][0]
    if fast:
        intact = max(0, (place - 8) // 14)
    else:
        lengths = np.cumsum([len(part) for part in parts])
        intact = int(np.searchsorted(lengths, place, side="right"))
    assert read.got[:intact].all()
    assert not read.got.all()
