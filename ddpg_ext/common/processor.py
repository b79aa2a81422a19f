"""The processor of this machine."""

import functools
import platform
from pathlib import Path


@functools.cache
def processor(entry: str = "model name") -> str:
    """Return an entry of ``/proc/cpuinfo``; if it is unknown, "" or, for the model name, Python's description."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        if line.startswith(f"{entry}\t"):
            return line.partition(":")[2].strip()
    return (platform.processor() or platform.machine()) if entry == "model name" else ""


def describe_processor() -> str:
    """Return the name of the processor, and its family and model, because clouds give generations the same name."""
    parts = {"family": processor("cpu family"), "model": processor("model")}
    return ", ".join([processor(), *(f"{name} {number}" for name, number in parts.items() if number)])
