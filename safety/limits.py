"""Limits that the operating system puts on a sandbox child.

Linux refuses memory beyond RLIMIT_AS. macOS ignores that limit, so a thread checks the memory in use. Windows has job objects.

A sealed child can open no file, socket or process: resource limits forbid it on Linux and macOS, Landlock forbids more on Linux, and
a job object forbids processes on Windows.

A child also ends when the service dies. worker.py notices the end of its input, but not while a regular expression holds the GIL: then
the job object ends it on Windows, and elsewhere a limit on processor time.
"""

import contextlib
import ctypes
import math
import os
import sys
import threading
import time
from collections.abc import Callable

from . import landlock

PRIORITY = 10  # nice value of a sealed child; 0 is normal, 19 the lowest priority
MEMORY_CHECK_INTERVAL_SECONDS = 0.05
_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES = -3, 1024 * 1024


def return_memory() -> None:
    """Let this process return each large block to the system. Otherwise glibc keeps up to 64 MB after the first large file."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # musl has no such setting
            ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


if sys.platform == "win32":
    from ctypes import wintypes

    # learn.microsoft.com/windows/win32/procthread/job-objects
    _KILL_ON_JOB_CLOSE, _PROCESS_MEMORY, _ACTIVE_PROCESSES = 0x2000, 0x100, 0x8
    _EXTENDED_LIMITS, _SET_QUOTA_AND_TERMINATE = 9, 0x101
    _BELOW_NORMAL_PRIORITY = 0x4000

    class _BasicLimits(ctypes.Structure):
        _fields_ = (
            ("PerProcessUserTimeLimit", wintypes.LARGE_INTEGER),
            ("PerJobUserTimeLimit", wintypes.LARGE_INTEGER),
            ("LimitFlags", wintypes.DWORD),
            ("MinimumWorkingSetSize", ctypes.c_size_t),
            ("MaximumWorkingSetSize", ctypes.c_size_t),
            ("ActiveProcessLimit", wintypes.DWORD),
            ("Affinity", ctypes.c_size_t),
            ("PriorityClass", wintypes.DWORD),
            ("SchedulingClass", wintypes.DWORD),
        )

    class _ExtendedLimits(ctypes.Structure):
        _fields_ = (
            ("BasicLimitInformation", _BasicLimits),
            ("IoInfo", ctypes.c_ulonglong * 6),
            ("ProcessMemoryLimit", ctypes.c_size_t),
            ("JobMemoryLimit", ctypes.c_size_t),
            ("PeakProcessMemoryUsed", ctypes.c_size_t),
            ("PeakJobMemoryUsed", ctypes.c_size_t),
        )

    def attach(pid: int, memory: int, sealed: bool) -> Callable[[], object]:
        """Put the child into a job object and return a function that ends the job, with the child. So does the end of this process."""
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.CreateJobObjectW.restype = kernel.OpenProcess.restype = wintypes.HANDLE
        job = wintypes.HANDLE(kernel.CreateJobObjectW(None, None))
        limits = _ExtendedLimits(ProcessMemoryLimit=memory)
        limits.BasicLimitInformation.LimitFlags = _KILL_ON_JOB_CLOSE | _PROCESS_MEMORY
        if sealed:
            limits.BasicLimitInformation.LimitFlags |= _ACTIVE_PROCESSES
            limits.BasicLimitInformation.ActiveProcessLimit = 1
        kernel.SetInformationJobObject(job, _EXTENDED_LIMITS, ctypes.byref(limits), ctypes.sizeof(limits))
        process = wintypes.HANDLE(kernel.OpenProcess(_SET_QUOTA_AND_TERMINATE, False, pid))
        kernel.AssignProcessToJobObject(job, process)
        kernel.CloseHandle(process)
        job_end = contextlib.ExitStack()  # closes the handle once, however often it is called
        job_end.callback(kernel.CloseHandle, job)
        return job_end.close

    def limit_memory(memory: int) -> None:
        """Do nothing: `attach` sets the limit."""

    def lower_priority() -> None:
        """Let other processes run first, such as the service with its streams."""
        kernel = ctypes.WinDLL("kernel32")
        kernel.GetCurrentProcess.restype = wintypes.HANDLE
        kernel.SetPriorityClass(wintypes.HANDLE(kernel.GetCurrentProcess()), _BELOW_NORMAL_PRIORITY)

    def forbid_files() -> None:
        """Do nothing: Windows has no limit that forbids a process to open files and sockets."""

    def forbid_processes() -> None:
        """Do nothing: `attach` forbids them."""

    def limit_processor_time(seconds: float) -> None:
        """Do nothing: the job object ends the child with the service."""

else:
    import resource

    def attach(pid: int, memory: int, sealed: bool) -> Callable[[], object]:
        """Return a function that does nothing. On POSIX the child limits itself."""
        return lambda: None

    def limit_memory(memory: int) -> None:
        """Limit the memory of this process. Beyond the limit Python raises MemoryError on Linux, and the process ends on macOS."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if sys.platform == "darwin":
            threading.Thread(target=_watch_memory, args=(memory,), daemon=True).start()
        else:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))

    def lower_priority() -> None:
        """Let other processes run first, such as the service with its streams."""
        os.nice(PRIORITY)

    def forbid_files() -> None:
        """Forbid this process to open files and sockets. What is open stays open, but no file can grow.

        Linux also forbids what needs no descriptor: to delete, rename or execute files and to signal or trace other processes.
        """
        if sys.platform == "linux":
            landlock.restrict()
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    def forbid_processes() -> None:
        """Forbid this process to start others. Linux does not apply this limit to root."""
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))

    def _watch_memory(memory: int) -> None:
        while resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < memory:  # bytes on macOS
            time.sleep(MEMORY_CHECK_INTERVAL_SECONDS)
        os._exit(1)

    def limit_processor_time(seconds: float) -> None:
        """Let the system end this process when it uses more processor time from now on, rounded up to whole seconds."""
        _, hard_limit = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + seconds) + 1, hard_limit))
