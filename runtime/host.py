"""What this machine is, and how much memory this process takes."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Host:
    """The machine a profile was measured on; None is unknown.

    Attributes:
        cores_available: CPUs that the process may run on.
        load_average_1min: runnable processes when the measurement began; near 0 on a quiet machine.
    """

    cpu_model: str | None
    architecture: str
    cores_physical: int | None
    cores_logical: int | None
    cores_available: int | None
    ram_bytes: int | None
    os: str
    python: str
    load_average_1min: float | None


@dataclass(frozen=True)
class Device:
    """What a phone reports beside a measurement, in its own words; None is unknown, as it is on a host."""

    model: str | None = None
    os_version: str | None = None
    thermal_state: str | None = None
    low_power_mode: bool | None = None
    battery_percent: float | None = None
    compute_unit: str | None = None


def describe_host() -> Host:
    import psutil

    return Host(
        cpu_model=_cpu_model(),
        architecture=platform.machine(),
        cores_physical=psutil.cpu_count(logical=False),
        cores_logical=psutil.cpu_count(),
        cores_available=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        ram_bytes=psutil.virtual_memory().total,
        os=platform.platform(),
        python=platform.python_version(),
        load_average_1min=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


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
