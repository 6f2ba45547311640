"""A training step: ours against the reference loop, one process, one machine, taking turns.

    python benchmarks/training_step.py --system tencdm                             a small model, on this CPU
    python benchmarks/training_step.py --device cuda --size paper --dtype bfloat16 --system tencdm ld4lg
    python benchmarks/training_step.py --system scorelm --lengths qqp              packed rows against padded ones

    ours        train() itself: its feed, System.loss, autocast, clip, optimizer, average, meter; from cached encodings
    reference   the released scripts' cost (reference/): re-encodes every batch, eager attention, loops over parameters

Both have the same shapes, texts and arithmetic, and weights at random (published.py).  They take turns for `--repeats`
rounds of `--steps` steps after a warm-up; what is printed is the median round.  A CPU is read by its own time, so a
machine that others use too gives the same numbers; a GPU by the wall's, which waits for it at the ends of a round.

    share     of the reference's parts in its step, beside what was measured of the original
    useful    tokens that are not padding
    mfu       products' FLOPs in a step (counted by torch) over time, as a share of what one large product reaches here
    extra     memory that the step needs beyond what is there before it

Seen on one H200 (torch 2.11, bfloat16, the papers' sizes, ours eager, medians of 3 rounds of 20 steps):

    tencdm          85.9 ms against 177.6   2.07 times as fast, mfu 32.4 % of 754 TFLOP/s
    ld4lg           74.3 against 147.0      1.98, mfu 6.2 %: the host that launches kernels is the bottleneck
    diffusionbert   57.3 against 97.3       1.70, extra 3.9 against 8.0 GB
    scorelm         60.5 against 78.2       1.29, and 1.54 in useful tokens
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]                           # a checkout need not be installed

from machine import Memory, ceiling, peak_of  # noqa: E402
from ours import Ours  # noqa: E402
from published import LENGTHS, SHAPES, trial  # noqa: E402
from reference.loop import Clock  # noqa: E402
from reference.steps import ORIGINAL, Reference, reference  # noqa: E402

from trainables.stages import Context, Store  # noqa: E402

NUMBERS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Side:
    """One of the two, and what was seen of it."""

    run: Callable[[int], float]                 # steps -> seconds a step
    tokens: float                               # useful ones in a step
    seconds: list[float] = field(default_factory=list)
    extra: float = 0.0                          # bytes

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def compare(system: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Measure one system; print it, and return the record."""
    device, numbers = torch.device(asked.device), NUMBERS[asked.dtype]
    with tempfile.TemporaryDirectory(prefix="training-step-") as scratch:
        context = Context(Store(Path(scratch) / "stages"), device=device, compile_from=0 if asked.eager else 2_000)
        recipe = trial(system, asked.size, Path(scratch), context.store, asked.lengths)
        mine = Ours(recipe, context, asked.batch, asked.dtype)
        clock = Clock(device)
        theirs: Reference = reference(system, mine, SHAPES[asked.size], Path(scratch), clock, numbers)
        sides = {"ours": Side(mine.run, mine.tokens), "reference": Side(theirs.run, theirs.tokens)}
        for side in sides.values():
            with Memory(device) as memory:
                side.run(asked.warm)                                              # what is first is not counted
            side.extra = memory.extra
        for _ in range(asked.repeats):
            for side in sides.values():
                side.seconds.append(side.run(asked.steps))
        clock.on = True
        theirs.run(max(8, asked.steps))
        typical = {name: statistics.median(parts) * len(parts) for name, parts in clock.parts.items()}
        shares = {name: 100 * part / sum(typical.values()) for name, part in typical.items()}
        flops, top = mine.flops(), ceiling(device, numbers)
        if asked.profile:
            with open(asked.profile, "a") as file:
                file.write(f"{system}\n{mine.profile(3, 25)}\n")
    record = {
        "system": system, "size": asked.size, "dtype": asked.dtype, "batch": mine.batch, "lengths": asked.lengths,
        "eager": asked.eager or device.type == "cpu",
        "ratio": sides["reference"].median / sides["ours"].median,
        "useful_ratio": sides["ours"].tokens / sides["ours"].median
        / (sides["reference"].tokens / sides["reference"].median),
        "flops": flops, "ceiling": top, "mfu": flops / sides["ours"].median / top,
        "parameters": mine.parameters, "averaged": {"ours": mine.averaged, "reference": theirs.averaged},
        "shares": shares,
    } | {name: {"seconds": side.median, "rounds": side.seconds, "samples_per_second": mine.batch / side.median,
                "useful_tokens_per_second": side.tokens / side.median, "extra_bytes": side.extra}
         for name, side in sides.items()}
    tell(record, ORIGINAL[system])
    return record


def tell(record: dict[str, Any], original: dict[str, float]) -> None:
    """A system's lines."""
    ours, theirs = record["ours"], record["reference"]
    how = "eager" if record["eager"] else "compiled"
    print(f"{record['system']}  {record['size']}  {record['dtype']}  {how}  batch {record['batch']}  "
          f"{record['parameters'] / 1e6:.1f} M trained")
    for name, side in (("ours", ours), ("reference", theirs)):
        print(f"  {name:<10}{1e3 * side['seconds']:10.1f} ms ({1e3 * min(side['rounds']):.1f} .. "
              f"{1e3 * max(side['rounds']):.1f})  {side['samples_per_second']:9.1f} samples/s  "
              f"{side['useful_tokens_per_second']:11.0f} useful tokens/s  {side['extra_bytes'] / 2**20:8.0f} MiB extra")
    print(f"  ratio {record['ratio']:.2f}   useful {record['useful_ratio']:.2f}   mfu {100 * record['mfu']:.1f} % of "
          f"{record['ceiling'] / 1e12:.3f} TFLOP/s   averaged {record['averaged']['ours'] / 1e6:.1f} M against "
          f"{record['averaged']['reference'] / 1e6:.1f} M")
    print("  shares of the reference, % (the original's on a CPU, and how far off): " + "   ".join(
        f"{name} {share:.1f}" + (f" ({original[name]:.1f}, {share - original[name]:+.1f})" if name in original else "")
        for name, share in record["shares"].items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", nargs="+", choices=list(ORIGINAL), default=["tencdm"])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--size", choices=list(SHAPES), default="small")
    parser.add_argument("--dtype", choices=list(NUMBERS), default="float32")
    parser.add_argument("--tf32", action="store_true", help="let both make float32 products with 10 bits of mantissa")
    parser.add_argument("--eager", action="store_true", help="ours is not compiled, as a short training is not")
    parser.add_argument("--profile", type=Path, help="write there where the time of ours goes")
    parser.add_argument("--lengths", choices=list(LENGTHS), default="", help="of the texts; else the size's own")
    parser.add_argument("--batch", type=int, default=0, help="0: the recipe's on a GPU, 16 on a CPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, help="of a round; 0: 20 on a GPU, 2 on a CPU")
    parser.add_argument("--json", type=Path, help="write the record here")
    asked = parser.parse_args()
    cpu = asked.device == "cpu"
    if asked.tf32:
        torch.set_float32_matmul_precision("high")
    if cpu:
        torch.set_num_threads(1)
    asked.batch, asked.steps = asked.batch or (16 if cpu else 0), asked.steps or (2 if cpu else 20)
    asked.warm = 2 if cpu else 10
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    records = [compare(system, asked) for system in asked.system]
    about = {"began": began, "machine": platform.processor() or platform.machine(), "python": platform.python_version(),
             "torch": torch.__version__, "threads": torch.get_num_threads(), "device": asked.device,
             "gpu": None if cpu else torch.cuda.get_device_name(), "peak_bytes": peak_of(torch.device(asked.device))}
    print(json.dumps(about))
    if asked.json:
        asked.json.write_text(json.dumps({"about": about, "records": records}, indent=1))


if __name__ == "__main__":
    main()
