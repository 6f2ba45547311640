"""A long training on a GPU may have its network compiled: thousands of small kernels become a few hundred larger ones.

    PALIMPSEST_COMPILE_FROM=2000      in a worker's environment: trainings of 2,000 steps and more; unset or 0: none

    network --torch.compile, at the first step--> one program forwards, one backwards         validation: as it was

Seen on one H200, bfloat16: an eager step of LD4LG (batch 128) takes 74 ms, of which the GPU's products take 5; the host
that launches them is the bottleneck.  Compiling takes a minute or two, so short trainings stay eager; a CPU's do always
(1.03 times as fast there, after 22 to 92 s).  It is off unless asked for: it wants a C compiler and Python's headers
beside the GPU, and it has been traced (no system's network breaks the graph), but not yet been timed on one.

Why it is asked of the machine, is no part of a config, and enters no fingerprint: like the GPU's kind it changes the
order of sums and which units are dropped, not what is computed.  A training is compiled or not by its length alone, so
going on where it was compiles again.  Groups of workers stay eager: nobody has tried them compiled.
"""

import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch
from torch import nn

from trainables.config import ConfigError
from trainables.system import Compiles

COMPILE_FROM = "PALIMPSEST_COMPILE_FROM"


def asked_to_compile_from() -> int:
    """How many steps a training must have to be compiled, as this machine's environment says; 0: none is."""
    said = os.environ.get(COMPILE_FROM, "0")
    if not said.isdecimal():
        raise ConfigError(COMPILE_FROM, f"must be a number of steps, or 0 for no compiling, not {said!r}")
    return int(said)


def compiles(device: torch.device, steps: int, least: int) -> bool:
    """Whether a training of so many steps is worth it (least 0: none is) and this machine can: Triton wants a C
    compiler."""
    able = device.type == "cuda" and find_spec("triton") is not None and bool(shutil.which("cc") or shutil.which("gcc"))
    return able and 0 < least <= steps


def compile_networks(model: nn.Module) -> None:
    """Have what a model says can be compiled be compiled when it is first called; parameters keep their names."""
    if isinstance(model, Compiles):
        for network in model.compilable():
            network.compile(dynamic=False)             # training has two shapes: the whole batch, and its first half


def eager(compiled: bool = True) -> AbstractContextManager[object]:
    """Inside, `compiled` networks run as they were: other shapes would be compiled anew, each for a few calls."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()     # to ask loads the compiler: 1 s
