"""Landlock, by which a process on Linux gives up rights for itself. docs.kernel.org/userspace-api/landlock.html"""

import ctypes
import os
import sys

_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # numbers of system calls, the same on every processor
_VERSION_FLAG = 1
_NO_NEW_PRIVILEGES = 38
# How many rights each version of Landlock knows, from version 0
_FILE_RIGHTS = (0, 13, 14, 15, 15, 16)
_NETWORK_RIGHTS = (0, 0, 0, 0, 2)
_SCOPES = (0, 0, 0, 0, 0, 0, 2)  # signals and abstract sockets


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


def version() -> int:
    """Return the version of Landlock that the kernel has, or 0."""
    if sys.platform != "linux":
        return 0
    found: int = _system().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    return max(0, found)


def restrict() -> None:
    """Give up every right that the kernel's Landlock knows, for this thread and those that it starts."""
    known = version()
    if not known:
        return
    rights = [(1 << counts[min(known, len(counts) - 1)]) - 1 for counts in (_FILE_RIGHTS, _NETWORK_RIGHTS, _SCOPES)]
    ruleset = _Ruleset(*rights)
    size = ctypes.sizeof(ruleset) if known >= 6 else 16 if known >= 4 else 8
    system = _system()
    rules: int = system.syscall(_CREATE_RULESET, ctypes.byref(ruleset), ctypes.c_size_t(size), ctypes.c_uint32(0))
    if rules >= 0:
        system.prctl(_NO_NEW_PRIVILEGES, *map(ctypes.c_ulong, (1, 0, 0, 0)))
        system.syscall(_RESTRICT_SELF, rules, ctypes.c_uint32(0))
        os.close(rules)


def _system() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
