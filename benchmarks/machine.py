"""What a machine can do and has used: a clock, a ceiling for products, memory.

Time on a CPU is the process' own, so others on the machine do not count; on a GPU it is the wall's, once the GPU is
idle.
"""

import ctypes
import re
import resource
import time
from pathlib import Path
from types import TracebackType

import torch


def now(device: torch.device) -> float:
    """Seconds; on a GPU everything that was asked of it is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def ceiling(device: torch.device, numbers: torch.dtype, rounds: int = 5) -> float:
    """FLOP/s of the best of some large products: what nothing here can exceed."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device).to(numbers) for _ in range(2))
    best = float("inf")
    for _ in range(rounds + 1):
        began = now(device)
        repeat = 10 if device.type == "cuda" else 1
        for _ in range(repeat):
            torch.mm(a, b)
        best = min(best, (now(device) - began) / repeat)
    return 2 * n**3 / best


class Memory:
    """Bytes at the peak of what happens inside, beyond what was held before: of the GPU, or of this process."""

    def __init__(self, device: torch.device):
        self.device, self.extra = device, 0.0

    def __enter__(self) -> "Memory":
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL(None).malloc_trim(0)                                      # what is free is free
            Path("/proc/self/clear_refs").write_text("5")                         # the peak starts from here
            self.before = _status("VmRSS")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
                 ) -> None:
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else _status("VmHWM")
        self.extra = peak - self.before


def peak_of(device: torch.device) -> int:
    """Bytes at the peak so far."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else \
        1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024.0 * int(found[1]) if found else 0.0
