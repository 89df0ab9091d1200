"""Runs a function in a forked child and can kill it just before any one of its write system calls.

A seccomp filter makes the kernel stop the child (all its threads) at the calls of ``CALLS`` and
nowhere else, and the parent, its tracer, decides: go on, or SIGKILL. So every single write, rename
and truncation is a place where the child can be made to die. Linux on x86-64; needs no privileges
where ptrace of one's own children is permitted.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable

__all__ = ["CALLS", "run_traced"]

CALLS = {
    "write": 1,
    "pwrite64": 18,
    "fsync": 74,
    "fdatasync": 75,
    "truncate": 76,
    "ftruncate": 77,
    "rename": 82,
    "unlink": 87,
    "openat": 257,
    "fallocate": 285,
}
PTRACE_TRACEME, PTRACE_CONT, PTRACE_SETOPTIONS, PTRACE_GETEVENTMSG = 0, 7, 0x4200, 0x4201
OPTIONS = 0x8 | 0x80 | 0x100000  # follow threads, stop at the filter, die with the tracer
EVENT_SECCOMP = 7
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
RET_TRACE, RET_ALLOW = 0x7FF00000, 0x7FFF0000
LOAD_NUMBER, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
WALL = 0x40000000  # wait for threads, too
EXIT_FAILED = 70


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, pid: int, data: int | ctypes.c_void_p = 0) -> None:
    if _libc.ptrace(request, pid, None, data) < 0:
        error = ctypes.get_errno()
        if error != 3:  # ESRCH: the thread is gone already
            raise OSError(error, f"ptrace request {request:#x}: {os.strerror(error)}")


def _install_filter() -> None:
    steps = [_Instruction(LOAD_NUMBER, 0, 0, 0)]
    for index, number in enumerate(CALLS.values()):
        steps.append(_Instruction(JUMP_EQUAL, 0, 1, number))
        steps.append(_Instruction(RETURN, 0, 0, RET_TRACE | index))
    steps.append(_Instruction(RETURN, 0, 0, RET_ALLOW))
    array = (_Instruction * len(steps))(*steps)
    program = _Program(len(steps), array)
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if _libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"seccomp filter: {os.strerror(error)}")


def _child(prepare: Callable[[], Callable[[], None]]) -> None:
    code = EXIT_FAILED
    try:
        act = prepare()
        _ptrace(PTRACE_TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        _install_filter()
        act()
        code = 0
    except BaseException:  # noqa: BLE001 - a forked child must never return into the parent's code
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def run_traced(
    prepare: Callable[[], Callable[[], None]],
    kill_before: Callable[[str], bool],
) -> bool:
    """Fork; the child calls ``prepare()`` freely and then, traced, what that returned.

    ``kill_before(name)`` is asked before each call of ``CALLS``. True when the child was killed,
    False when it ended by itself; RuntimeError when it failed.
    """
    pid = os.fork()
    if pid == 0:
        _child(prepare)
    os.waitpid(pid, os.WUNTRACED)
    _ptrace(PTRACE_SETOPTIONS, pid, OPTIONS)
    _ptrace(PTRACE_CONT, pid)
    names = list(CALLS)
    killed = False
    message = ctypes.c_ulong()
    while True:
        thread, status = os.waitpid(-1, WALL)
        if thread == pid and (os.WIFEXITED(status) or os.WIFSIGNALED(status)):
            break
        if not os.WIFSTOPPED(status):
            continue  # a thread ended
        number = os.WSTOPSIG(status)
        passed_on = 0
        if status >> 8 == signal.SIGTRAP | EVENT_SECCOMP << 8:
            _ptrace(PTRACE_GETEVENTMSG, thread, ctypes.cast(ctypes.byref(message), ctypes.c_void_p))
            if not killed and kill_before(names[message.value]):
                killed = True
                os.kill(pid, signal.SIGKILL)
        elif number not in (signal.SIGTRAP, signal.SIGSTOP):
            passed_on = number
        if not killed:
            _ptrace(PTRACE_CONT, thread, passed_on)
    if not killed and os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"the traced child ended with {os.waitstatus_to_exitcode(status)}")
    return killed
