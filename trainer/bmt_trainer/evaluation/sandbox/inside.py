"""The isolated side of the sandbox: a script that `unshare` starts. Standard library alone.

It takes rights from itself, one after the other, and then runs the program it is given; without one
of the steps it runs nothing. Namespaces of `unshare`: no network but its own loopback, no process
of others, no mount of others. Here: all files read-only but a small folder in memory, no device,
limits of time and memory, no capability, and a filter of system calls: no socket, no new process.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
from typing import Any

#: What the script writes when it is isolated; after it, a reason if a step was refused.
READY, REFUSED = b"ready\n", b"refused "
#: Characters of a program's result.
RESULT_CHARACTERS = 64
#: The one folder that a program may write to.
FOLDER = "/dev/shm"

_LIBC = ctypes.CDLL(None, use_errno=True)
# <linux/mount.h>, <linux/prctl.h>, <linux/capability.h>, <linux/seccomp.h>, <linux/bpf_common.h>.
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _RDONLY, _PRIVATE = 442, -100, 0x8000, 1, 1 << 18
_NODEV, _NOSUID_NODEV = 4, 2 | 4
_NO_NEW_PRIVS, _SET_SECCOMP, _CAPBSET_DROP, _FILTER = 38, 22, 24, 2
_CAPABILITY_VERSION_3 = 0x20080522
_LOAD, _EQUAL, _AT_LEAST, _HAS_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS, _CLONE_THREAD, _X32 = 1, 38, 0x10000, 0x40000000
# By machine: AUDIT_ARCH, clone, and the calls that are refused: sockets, processes, programs, new
# namespaces, memory that no limit counts, and parts of the kernel that no program needs.
_CALLS: dict[str, tuple[int, int, tuple[int, ...]]] = {
    # socket socketpair fork vfork execve execveat unshare setns ptrace memfd_create shmget msgget
    # semget bpf perf_event_open userfaultfd keyctl add_key process_vm_writev
    "x86_64": (
        0xC000003E,
        56,
        (41, 53, 57, 58, 59, 322, 272, 308, 101, 319, 29, 68, 64, 321, 298, 323, 250, 248, 311),
    ),
    "aarch64": (
        0xC00000B7,
        220,
        (198, 199, 221, 281, 97, 268, 117, 279, 194, 186, 190, 280, 241, 282, 219, 217, 271),
    ),
}
# Of all machines: io_uring_setup, pidfd_open, memfd_secret.
_CALLS_OF_ALL = (425, 434, 447)
_CLONE3 = 435


def main() -> None:
    """Isolate this process, and run the program of the input in another."""
    given: dict[str, Any] = json.load(sys.stdin)
    answer = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    try:
        if os.getpid() != 1:  # what follows would change the mounts of the machine itself
            raise OSError(_EPERM, "not the first process of a namespace")
        _priority()
        _mounts(given["files_bytes"])
        # The first process of a namespace ends all others with itself, and no signal from inside
        # ends it. Its alarm is for a program that waits.
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})  # the parent may hold it back
        signal.alarm(given["seconds"])
        if child := os.fork():
            os.waitpid(child, 0)
            os._exit(0)
        _limits(given)
        _capabilities()
        _filter()
    except OSError as error:
        os.write(answer, REFUSED + str(error).encode())
        os._exit(0)
    os.write(answer, READY)
    program, token, result = given["program"], given["token"].encode(), given["result"]
    del given
    names = {"__name__": "__main__"}
    exec(compile(program, "<program>", "exec"), names)
    # Only the end of the program writes it: one that leaves early with code 0 has not passed.
    os.write(answer, token + str(names[result])[:RESULT_CHARACTERS].encode() if result else token)


def _checked(result: int, step: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{step}: {os.strerror(code)}")


def _priority() -> None:
    """Give this session the priority of who started it: a new one has that of any other.

    Where the kernel groups tasks by session (sched(7), autogroup), niceness holds within one alone.
    """
    try:
        with open("/proc/self/autogroup", "w") as weight:
            weight.write(str(os.getpriority(os.PRIO_PROCESS, 0)))
    except OSError:  # a kernel that does not, or a niceness below 0
        pass


def _mounts(files_bytes: int) -> None:
    """Make all mounts read-only and without devices, and a folder in memory."""
    # A mount that is read-only lets its devices be written: terminals, accelerators.
    attributes = struct.pack("=QQQQ", _RDONLY | _NODEV, 0, _PRIVATE, 0)
    _checked(
        _LIBC.syscall(_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, attributes, len(attributes)),
        "mount_setattr",
    )
    options = f"size={files_bytes},nr_inodes=256,mode=0700".encode()
    folder = FOLDER.encode()
    _checked(_LIBC.mount(b"tmpfs", folder, b"tmpfs", _NOSUID_NODEV, options), "mount tmpfs")
    os.chdir(FOLDER)


def _limits(given: dict[str, Any]) -> None:
    for limit, value in (
        (resource.RLIMIT_CPU, given["cpu_seconds"]),
        (resource.RLIMIT_AS, given["memory_bytes"]),
        (resource.RLIMIT_FSIZE, given["files_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))


def _capabilities() -> None:
    """Give up all capabilities, which are those of the namespace, and ways to new ones."""
    for capability in range(64):
        if _LIBC.prctl(_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break  # the kernel's last one was before it
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _checked(_LIBC.capset(header, bytes(24)), "capset")
    _checked(_LIBC.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def _filter() -> None:
    """Refuse system calls by seccomp."""
    machine = platform.machine()
    if machine not in _CALLS:
        raise OSError(_ENOSYS, f"no filter of system calls for {machine}")
    arch, clone, refused = _CALLS[machine]
    steps = [
        *((_LOAD, 0, 0, 4), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL)),
        *((_LOAD, 0, 0, 0), (_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _ERRNO | _EPERM)),
    ]
    for call in (*refused, *_CALLS_OF_ALL):
        steps += [(_EQUAL, 0, 1, call), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    # The C library makes threads by clone where clone3 is missing, whose flags a filter can read.
    steps += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | _ENOSYS)]
    steps += [(_EQUAL, 0, 3, clone), (_LOAD, 0, 0, 16), (_HAS_BIT, 1, 0, _CLONE_THREAD)]
    steps += [(_RETURN, 0, 0, _ERRNO | _EPERM), (_RETURN, 0, 0, _ALLOW)]
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("@HP", len(steps), ctypes.addressof(buffer))
    _checked(_LIBC.prctl(_SET_SECCOMP, _FILTER, program, 0, 0), "seccomp")


if __name__ == "__main__":
    main()
