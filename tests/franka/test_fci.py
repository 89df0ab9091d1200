"""The wire's layouts: sizes restated by hand, and what is packed comes out as it went in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hardware.franka import fci
from hardware.franka.fci import Command, Status

# Header included where there is one; measured on libfranka 0.9.2 and 0.21.2.
REQUEST_SIZES = {
    10: {
        "connect": 16, "move": 125, "stop_move": 12, "set_collision_behavior": 428,
        "set_joint_impedance": 68, "set_cartesian_impedance": 60, "set_guiding_mode": 19,
        "set_ee_to_k": 140, "set_ne_to_ee": 140, "set_load": 116, "automatic_error_recovery": 12,
        "get_robot_model": 12,
    },
    5: {
        "connect": 16, "move": 68, "stop_move": 12, "get_cartesian_limit": 16,
        "set_collision_behavior": 428, "set_joint_impedance": 68, "set_cartesian_impedance": 60,
        "set_guiding_mode": 19, "set_ee_to_k": 140, "set_ne_to_ee": 140, "set_load": 116,
        "set_filters": 52, "automatic_error_recovery": 12, "load_model_library": 14,
    },
}  # fmt: skip
IDS = {
    10: ["connect", "move", "stop_move", "set_collision_behavior", "set_joint_impedance",
         "set_cartesian_impedance", "set_guiding_mode", "set_ee_to_k", "set_ne_to_ee", "set_load",
         "automatic_error_recovery", "get_robot_model"],
    5: ["connect", "move", "stop_move", "get_cartesian_limit", "set_collision_behavior",
        "set_joint_impedance", "set_cartesian_impedance", "set_guiding_mode", "set_ee_to_k",
        "set_ne_to_ee", "set_load", "set_filters", "automatic_error_recovery",
        "load_model_library"],
}  # fmt: skip


def _filled(dtype: np.dtype[np.void], seed: int) -> Any:
    """A record with every bit of every number random (so NaNs, denormals and infinities too)."""
    random = np.random.default_rng(seed)
    record = np.zeros((), dtype)
    for name in dtype.names or ():
        field = record[name]
        if field.dtype == np.bool_:
            record[name] = random.integers(0, 2, field.shape)
        else:
            count = max(1, field.size)
            numbers = np.frombuffer(random.bytes(count * field.dtype.itemsize), field.dtype)
            record[name] = numbers.reshape(field.shape)
    return record


def records(dtype: np.dtype[np.void]) -> st.SearchStrategy[Any]:
    """Records of a layout, every field from the whole range of its type."""
    return st.integers(0, 2**63 - 1).map(lambda seed: _filled(dtype, seed))


LAYOUTS = {
    **{f"state{v}": fci.STATE[v] for v in fci.VERSIONS},
    **{f"command{v}": fci.COMMAND[v] for v in fci.VERSIONS},
    **{f"{c}{v} request": d for v in fci.VERSIONS for c, d in fci.REQUESTS[v].items() if d.names},
    **{f"{c}{v} reply": d for v in fci.VERSIONS for c, d in fci.REPLIES[v].items()},
}
STRUCTS = {
    "header": (fci.HEADER, st.tuples(*[st.integers(0, 2**32 - 1)] * 3)),
    "connect reply": (fci.CONNECT_REPLY, st.tuples(st.integers(0, 255), st.integers(0, 65535))),
    "gripper header": (
        fci.GRIPPER_HEADER,
        st.tuples(st.integers(0, 65535), *[st.integers(0, 2**32 - 1)] * 2),
    ),
    "gripper connect": (
        fci.GRIPPER_REQUESTS[fci.GripperCommand.CONNECT],
        st.tuples(*[st.integers(0, 65535)] * 2),
    ),
    "gripper grasp": (
        fci.GRIPPER_REQUESTS[fci.GripperCommand.GRASP],
        st.tuples(*[st.floats(allow_nan=False)] * 5),
    ),
    "gripper move": (
        fci.GRIPPER_REQUESTS[fci.GripperCommand.MOVE],
        st.tuples(*[st.floats(allow_nan=False)] * 2),
    ),
    "gripper state": (
        fci.GRIPPER_STATE,
        st.tuples(st.integers(0, 2**32 - 1), *[st.floats(allow_nan=False)] * 2, st.booleans(),
                  st.integers(0, 65535)),
    ),
}  # fmt: skip


def _examples(test: Any, layout: str, count: int) -> None:
    @settings(max_examples=count, deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        test(layout, data)

    check()


def _record_round_trip(layout: str, data: st.DataObject) -> None:
    dtype = LAYOUTS[layout]
    record = data.draw(records(dtype))
    packed = record.tobytes()
    assert len(packed) == dtype.itemsize
    unpacked = np.frombuffer(packed, dtype)[0]
    for name in dtype.names or ():
        np.testing.assert_array_equal(unpacked[name], record[()][name])
    # As fields in order, no gaps: each one packed by itself.
    assert b"".join(np.asarray(unpacked[name]).tobytes() for name in dtype.names or ()) == packed


def _struct_round_trip(layout: str, data: st.DataObject) -> None:
    structure, values = STRUCTS[layout]
    row = data.draw(values)
    assert structure.unpack(structure.pack(*row)) == row


@pytest.mark.parametrize("layout", LAYOUTS)
def test_records_come_out_as_they_went_in(layout: str) -> None:
    _examples(_record_round_trip, layout, 25)


@pytest.mark.exhaustive
@pytest.mark.parametrize("layout", LAYOUTS)
def test_records_come_out_as_they_went_in_ten_thousand_times(layout: str) -> None:
    _examples(_record_round_trip, layout, 10_000)


@pytest.mark.parametrize("layout", STRUCTS)
def test_structures_come_out_as_they_went_in(layout: str) -> None:
    _examples(_struct_round_trip, layout, 200)


def test_sizes_are_those_of_the_wire() -> None:
    assert fci.STATE[10].itemsize == 1377
    assert fci.STATE[5].itemsize == 2373
    assert fci.COMMAND[10].itemsize == fci.COMMAND_STRUCT[10].size == 371
    assert fci.COMMAND[5].itemsize == fci.COMMAND_STRUCT[5].size == 370
    assert fci.HEADER.size == 12
    assert fci.HEADER.size + fci.CONNECT_REPLY.size == 15
    assert fci.GRIPPER_HEADER.size == 10
    assert fci.GRIPPER_STATE.size == 23
    for version, sizes in REQUEST_SIZES.items():
        found = {str(c): 12 + d.itemsize for c, d in fci.REQUESTS[version].items()}
        assert found == sizes
    limit = fci.REPLIES[5][Command.GET_CARTESIAN_LIMIT]
    assert limit.itemsize == 1 + 3 * 8 + 3 * 8 + 16 * 8 + 1


def test_fields_lie_where_libfranka_reads_them() -> None:
    # (byte of q, byte of the tail) and the command's fields.
    for version, (q, tail) in {10: (596, 1288), 5: (1184, 2280)}.items():
        fields = fci.STATE[version].fields
        assert fields is not None
        assert fields["q"][1] == q
        assert fields["generator"][1] == tail
        assert fields["robot_mode"][1] == tail + 2 + 41 + 41
    fields = fci.COMMAND[10].fields
    assert fields is not None
    offsets = {name: fields[name][1] for name in fci.COMMAND[10].names or ()}
    assert offsets == {
        "message_id": 0, "q_c": 8, "dq_c": 64, "O_T_EE_c": 120, "O_dP_EE_c": 248, "elbow_c": 296,
        "valid_elbow": 312, "motion_finished": 313, "tau_J_d": 314, "torque_finished": 370,
    }  # fmt: skip


def test_commands_have_the_ids_of_their_version() -> None:
    for version, names in IDS.items():
        ids = fci.COMMAND_IDS[version]
        assert [str(c) for c in sorted(ids, key=lambda c: ids[c])] == names
        assert sorted(ids.values()) == list(range(len(names)))


def test_statuses_of_move_have_the_numbers_of_their_version() -> None:
    ten, five = fci.STATUS[10][Command.MOVE], fci.STATUS[5][Command.MOVE]
    both = [Status.SUCCESS, Status.MOTION_STARTED, Status.PREEMPTED]
    assert [ten[s] for s in both] == [five[s] for s in both] == [0, 1, 2]
    later = [
        Status.NOT_POSSIBLE, Status.SINGULAR, Status.INVALID_ARGUMENT, Status.REFLEX_ABORTED,
        Status.EMERGENCY_ABORTED, Status.INPUT_ERROR_ABORTED, Status.ABORTED,
    ]  # fmt: skip
    assert [ten[s] for s in later] == [5, 6, 7, 8, 9, 10, 11]
    assert [five[s] for s in later] == [3, 4, 5, 6, 7, 8, 9]
    assert ten[Status.SAFETY_PREEMPTED] == 3
    assert Status.SAFETY_PREEMPTED not in five


def test_there_are_41_errors_and_the_26th_is_communication() -> None:
    assert len(fci.ERROR_NAMES) == len(set(fci.ERROR_NAMES)) == 41
    assert fci.ERROR_NAMES[25] == "communication_constraints_violation"
    assert fci.error_flags(["communication_constraints_violation"])[25] == 1


@given(st.sets(st.sampled_from(fci.ERROR_NAMES)))
def test_flags_name_the_errors_that_they_came_from(names: set[str]) -> None:
    flags = fci.error_flags(sorted(names))
    assert len(flags) == 41
    assert set(fci.errors_named(flags)) == names


@pytest.mark.parametrize("version", fci.VERSIONS)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_packed_state_reads_as_its_record(version: fci.Version, data: st.DataObject) -> None:
    buffer = fci.StateBuffer(version)
    width = 32 if version == 10 else 64
    numbers = data.draw(arrays(np.float64, 284, elements=st.floats(width=width, allow_nan=False)))
    buffer.numbers[:] = numbers
    buffer.generator, buffer.controller, buffer.mode = 3, 1, 2
    errors = data.draw(st.sets(st.sampled_from(fci.ERROR_NAMES)))
    buffer.errors = fci.error_flags(sorted(errors))
    buffer.success_rate = 0.5
    message_id = data.draw(st.integers(0, 2**64 - 1))
    packed = bytes(buffer.pack(message_id))
    assert len(packed) == fci.STATE[version].itemsize
    record = np.frombuffer(packed, fci.STATE[version])[0]
    assert record["message_id"] == message_id
    start = 0
    for name, count in fci.STATE_NUMBERS:
        np.testing.assert_array_equal(np.ravel(record[name]), numbers[start : start + count])
        np.testing.assert_array_equal(buffer[name], numbers[start : start + count])
        start += count
    assert start == 284
    assert (record["generator"], record["controller"], record["robot_mode"]) == (3, 1, 2)
    assert set(fci.errors_named(record["errors"])) == errors
    assert not record["reflex_reason"].any()
    assert record["success_rate"] == 0.5


@pytest.mark.parametrize("version", fci.VERSIONS)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_command_is_unpacked_as_its_record(version: fci.Version, data: st.DataObject) -> None:
    record = data.draw(records(fci.COMMAND[version]))[()]
    command = fci.MotionCommand(version, record.tobytes())
    assert command.message_id == record["message_id"]
    for name, field in (
        ("q", "q_c"), ("dq", "dq_c"), ("pose", "O_T_EE_c"), ("twist", "O_dP_EE_c"),
        ("elbow", "elbow_c"), ("tau", "tau_J_d"),
    ):  # fmt: skip
        np.testing.assert_array_equal(getattr(command, name), record[field])
    assert command.valid_elbow == record["valid_elbow"]
    assert command.motion_finished == record["motion_finished"]
    assert command.torque_finished == (record["torque_finished"] if version == 10 else False)


def test_a_datagram_of_another_size_is_no_command() -> None:
    with pytest.raises(ValueError, match="371 bytes"):
        fci.MotionCommand(10, bytes(370))
