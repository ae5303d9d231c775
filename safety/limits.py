"""Limits that the operating system puts on a sandbox child.

Linux refuses memory beyond RLIMIT_AS. macOS ignores that limit, so a thread looks at the memory in use. Windows has job objects, which
also end the child when the service dies; elsewhere a limit on processor time does so.
"""

import os
import sys
import threading
import time
from collections.abc import Callable

CHECK_SECONDS = 0.05

if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    # learn.microsoft.com/windows/win32/procthread/job-objects
    _KILL_ON_JOB_CLOSE, _PROCESS_MEMORY, _EXTENDED_LIMITS, _SET_QUOTA_AND_TERMINATE = 0x2000, 0x100, 9, 0x101

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

    def attach(pid: int, memory: int) -> Callable[[], object]:
        """Put the child into a job object and return the function that ends the child. The system ends it when this process dies."""
        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.CreateJobObjectW.restype = kernel.OpenProcess.restype = wintypes.HANDLE
        job = wintypes.HANDLE(kernel.CreateJobObjectW(None, None))
        wanted = _ExtendedLimits(ProcessMemoryLimit=memory)
        wanted.BasicLimitInformation.LimitFlags = _KILL_ON_JOB_CLOSE | _PROCESS_MEMORY
        kernel.SetInformationJobObject(job, _EXTENDED_LIMITS, ctypes.byref(wanted), ctypes.sizeof(wanted))
        process = wintypes.HANDLE(kernel.OpenProcess(_SET_QUOTA_AND_TERMINATE, False, pid))
        kernel.AssignProcessToJobObject(job, process)
        kernel.CloseHandle(process)
        return lambda: kernel.CloseHandle(job)

    def limit_memory(memory: int) -> None:
        """Done by `attach`."""

    def limit_processor_time(seconds: float) -> None:
        """Done by `attach`."""

else:
    import resource

    def attach(pid: int, memory: int) -> Callable[[], object]:
        """Return what ends the limits. On POSIX the child sets its own, so there is nothing to end."""
        return lambda: None

    def limit_memory(memory: int) -> None:
        """Limit this process. Beyond the limit Linux makes Python raise MemoryError, macOS ends the process."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if sys.platform == "darwin":
            threading.Thread(target=_watch_memory, args=(memory,), daemon=True).start()
        else:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))

    def _watch_memory(memory: int) -> None:
        while resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < memory:  # bytes on macOS
            time.sleep(CHECK_SECONDS)
        os._exit(1)

    def limit_processor_time(seconds: float) -> None:
        """Let the system end this process when it uses so much more processor time, rounded up to seconds."""
        used = time.process_time()
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used + seconds) + 2, most))
