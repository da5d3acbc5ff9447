"""What this machine is, and how much memory this process takes."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from pathlib import Path

from .profile_record import Conditions, Device


def describe_host() -> Device:
    import psutil

    return Device(
        platform="host",
        model=None,
        soc=_cpu_model(),
        architecture=platform.machine() or None,
        os=platform.system() or None,
        os_version=platform.release() or None,
        cores=psutil.cpu_count(),
        cores_available=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        ram_bytes=psutil.virtual_memory().total,
        memory_limit_bytes=None,
        memory_metric="rss",
        emulated=None,
    )


def conditions() -> Conditions:
    """State of this machine now; what a host does not tell alike everywhere is None."""
    return Conditions(load_average_1min=os.getloadavg()[0] if hasattr(os, "getloadavg") else None)


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)


def rss_bytes() -> int:
    """Resident memory of this process now."""
    import psutil

    return psutil.Process().memory_info().rss


def forget_peak_rss() -> None:
    """Restart the peak at what is resident now, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss_bytes() -> int | None:
    """Highest resident memory of this process; None where the system does not say.

    Linux carries `ru_maxrss` over from the process that started this one, so a small worker of a large parent
    would report the parent's peak: there the kernel's own high-water mark is read instead.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        if sys.platform == "win32":
            return None
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
    return int(line.split()[1]) * 1024 if line else None
