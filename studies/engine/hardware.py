"""What kind of machine this is: an autoscaler's are others every night, and those of one kind compare in speed.

    2 x AMD EPYC 7B13                                     the processor, by all the CPUs that the machine has
    32 x Intel(R) Xeon(R) Platinum 8488C, 1 x NVIDIA L40S         and the GPUs that this process has used

Two kinds that would be named alike (a machine that is throttled, a neighbour at work) cannot be told apart here.
"""

import os
import platform
import re
from pathlib import Path

import torch


def hardware(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """This machine's kind, as the process sees it that has trained."""
    kinds = [f"{os.cpu_count()} x {processor(cpuinfo)}"]
    if torch.cuda.is_initialized():      # asking a GPU that nobody here uses would take memory on it
        kinds.append(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}")
    return ", ".join(kinds)


def processor(cpuinfo: Path) -> str:
    """Its name; where Linux does not say one, as on many ARMs, the architecture."""
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8", errors="replace"), re.M)
    except OSError:
        named = None
    return " ".join(named[1].split()) if named else platform.processor() or platform.machine()
