"""The processor of this machine."""

import functools
import platform
from pathlib import Path


@functools.cache
def processor(entry: str = "model name") -> str:
    """
    Return what the system says about its first processor.

    :param entry: an entry of Linux' ``/proc/cpuinfo``: ``model name``, ``vendor_id``, ``cpu family``, ...
    :return: its value; on other systems and processors the short description that Python has
    """
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        if line.startswith(f"{entry}\t"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
