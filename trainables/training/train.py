"""The training loop: one for systems, decoders, encoders and judges.

    batches --share of step k--> model.loss --backward--> clip --> optimizer (lr of k) --> average of the weights

    train(model, batches, Training(steps=2_000), seed=0, out=folder, context=context, validate=held_out)

It ends with `out/model.safetensors`, the averaged weights, which the model then holds too.  Stopped or killed, the same
call goes on where it was: noise, dropout and data of a step are functions of (seed, step), so the weights come out as
if nothing had happened.  Several workers (`parallel`) share each global batch by rows; only worker 0 touches `out`.

Recorded by the number of steps done, once a step at most, and on every worker with the same values:
train/<name> for every loss the model names (means since the last record), train/grad_norm (before clipping), train/lr,
train/examples_per_second and train/tokens_per_second (real tokens, no padding); valid/<name> on the averaged weights,
always with the same noise and at progress 1, so that two points differ by the model alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from trainables.config import config, fingerprint
from trainables.randomness import Rng, seed_of, step_rng
from trainables.stages import Context
from trainables.system import Batch, Diagnoses, Trains
from trainables.training.average import Ema, NoAverage, PowerEma, averaged
from trainables.training.batches import Batches, Feed
from trainables.training.compiling import compile_networks, compiles, eager
from trainables.training.learning_rate import Constant, Cosine, Linear
from trainables.training.meter import Diverged, Meter
from trainables.training.optimizers import AdamW, Lion
from trainables.training.parallel import ALONE, Parallel
from trainables.training.state import (
    State,
    drop_state,
    frozen,
    load_weights,
    read_notes,
    read_state,
    save_weights,
    trainable,
    weights_about,
)

__all__ = ["Diverged", "Stopped", "Training", "load_weights", "train"]

MEASURED = ("grad_norm", "lr", "examples_per_second", "tokens_per_second")     # train/<name>, beside the losses
VALIDATION_ROWS = 64         # of a validation batch, whatever the training batch: all runs of a seed meet one noise


@config
class Training:
    """How a model is trained; `batch` is the global one, whatever the number of workers."""

    optimizer: AdamW | Lion = AdamW()
    schedule: Constant | Cosine | Linear = Constant()
    ema: Ema | PowerEma | NoAverage = Ema()
    steps: int = 1_000
    batch: int = 64                      # examples per optimizer step
    accumulate: int = 1                  # micro-batches per step: less memory, same gradient
    clip: float = 1.0                    # gradient norm; 0 does not clip
    precision: Literal["auto", "float32", "bfloat16"] = "auto"       # auto: bfloat16 on GPUs that have it
    record_every: int = 50               # steps, as are the next two; the last step always counts
    validate_every: int = 500
    save_every: int = 1_000
    validate_on: int = 1_024             # held-out examples, at most

    def __post_init__(self):
        for name in ("steps", "batch", "accumulate", "record_every", "validate_every", "save_every", "validate_on"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} does not split into {self.accumulate} equal micro-batches")
        if self.clip < 0:
            raise ValueError(f"clip must be a gradient norm, or 0 for none, not {self.clip}")
        if self.schedule.warmup > self.steps:
            raise ValueError(f"schedule.warmup {self.schedule.warmup} is longer than training ({self.steps} steps)")


class Stopped(Exception):
    """Training was asked to stop, saved itself after `step` steps, and can go on from there."""

    def __init__(self, step: int):
        super().__init__(step)
        self.step = step

    def __str__(self) -> str:
        return f"training stopped after step {self.step}; its state is saved"


def train(model: nn.Module, batches: Batches, cfg: Training, *, seed: int, out: Path, context: Context,
          validate: Batches | None = None, parallel: Parallel = ALONE) -> None:
    """Train `model`, an nn.Module that satisfies Trains, and leave `out/model.safetensors`.

    Its loss must be a mean over the rows of the batch: then neither micro-batches nor workers change it.
    Raises Diverged, Stopped, and ValueError where batch, workers or the contents of `out` do not fit.
    """
    device, parts = context.device, cfg.accumulate * parallel.world
    identity = {"training": fingerprint(cfg), "seed": str(seed)}
    if cfg.batch % parts:
        raise ValueError(f"batch {cfg.batch} does not split over {parallel.world} workers "
                         f"x {cfg.accumulate} micro-batches")

    # -- what is trained (worker 0's weights, everywhere)
    model.to(device)
    weights = list(trainable(model).values())
    if not weights:
        raise ValueError(f"{type(model).__name__} has no parameter to train")
    finished = parallel.any(parallel.rank == 0 and identity.items() <= weights_about(out).items())
    if finished and parallel.rank == 0:
        load_weights(model, out)
    loss_of = parallel.wrap(Objective(model))
    if finished:
        model.eval()
        return

    # -- and with what
    optimizer, average = cfg.optimizer.build(weights), cfg.ema.build(weights)
    feed = Feed(batches, seed=seed, batch=cfg.batch, accumulate=cfg.accumulate, rank=parallel.rank,
                world=parallel.world, device=device)
    numbers = arithmetic(cfg.precision, device)
    meter = Meter(parallel, cfg.accumulate, device)

    # -- where it stands
    state, step = State(model, optimizer, average), 0
    optimizer.zero_grad()
    if saved := parallel.share(read_state(out) if parallel.rank == 0 else b""):
        notes = read_notes(saved)
        if notes["identity"] != identity:
            raise ValueError(f"{out} holds an unfinished training with another configuration or seed")
        state.restore(saved, str(out))
        meter.restore(notes["meter"])
        step = notes["step"]
    del saved

    # -- the loop
    if compiled := parallel.world == 1 and compiles(device, cfg.steps, context.compile_from):
        compile_networks(model)
    set_training(model)
    while step < cfg.steps:
        for micro in range(cfg.accumulate):
            part = micro * parallel.world + parallel.rank
            batch, rng = feed.at(step, micro), step_rng(seed, step, device, part, parts)
            reseed(device, seed_of(seed, "dropout", step, part))
            with parallel.holding(loss_of, more=micro + 1 < cfg.accumulate):
                with torch.autocast(device.type, numbers, enabled=numbers != torch.float32):
                    losses = loss_of(batch, step / cfg.steps, rng)
                (losses["loss"] / cfg.accumulate).backward()
            meter.add({**losses, "tokens": batch.mask.sum()})
        meter.add({"grad_norm": clip(weights, cfg.clip)})
        if device.type == "cpu":
            meter.check(step + 1)
        rate = cfg.optimizer.lr * cfg.schedule.share(step, cfg.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        average.update(step)

        # -- now and then
        done, metrics = step == cfg.steps, {}
        if done or step % cfg.record_every == 0:
            metrics |= named("train", meter.means(step, cfg.batch) | {"lr": rate})
        if validate is not None and (done or step % cfg.validate_every == 0):
            with meter.paused(), averaged(average), eager(compiled):
                metrics |= named("valid", validation(model, validate, cfg, seed, device, numbers, parallel))
            set_training(model)
        if metrics:
            context.record(step, metrics)
        if done:
            break
        stop = parallel.any(context.should_stop())
        if stop or step % cfg.save_every == 0:
            meter.check(step)
            with meter.paused():
                if parallel.rank == 0:
                    state.save(out, {"step": step, "identity": identity, "meter": meter.notes()})
        if stop:
            parallel.barrier()
            raise Stopped(step)

    # -- the end
    average.swap()
    model.eval()
    if parallel.rank == 0:
        save_weights(model, out, identity)
        drop_state(out)
    parallel.barrier()


class Objective(nn.Module):
    """The model's loss as a forward pass, which is where DDP looks."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, progress: float, rng: Rng) -> dict[str, Tensor]:
        """Scalars by name; "loss" is the one minimised."""
        return dict(cast(Trains, self.model).loss(batch, progress, rng))


def arithmetic(precision: str, device: torch.device) -> torch.dtype:
    """What matrix products are computed in; weights and sums stay float32, so bfloat16 needs no loss scaling.

    "auto" leaves a CPU at float32 even where it has bfloat16: then all CPUs give the same result, and attention's
    backward in bfloat16 takes a CPU seven times as long (5.8 ms for .8 ms at [64, 2, 13, 32], torch 2.13 on AVX512).
    """
    if precision != "auto":
        return torch.bfloat16 if precision == "bfloat16" else torch.float32
    able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if able else torch.float32


def reseed(device: torch.device, seed: int) -> None:
    """Set the global random state, which is where dropout draws from."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)        # torch.manual_seed spends .2 ms on devices that are not used
    else:
        torch.manual_seed(seed)


def set_training(model: nn.Module) -> None:
    """Training mode, but for frozen modules: a language model that is only read must not drop anything."""
    model.train()
    for module in frozen(model).values():
        module.eval()


def clip(weights: list[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradients down to the norm `limit` (0: leave them); the norm they had."""
    norm = get_total_norm([weight.grad for weight in weights if weight.grad is not None], foreach=True)
    if limit and (norm.device.type != "cpu" or norm > limit):      # to compare on a GPU would be to wait for it
        clip_grads_with_norm_(weights, limit, norm, foreach=True)
    return norm


@torch.no_grad()
def validation(model: nn.Module, held_out: Batches, cfg: Training, seed: int, device: torch.device,
               numbers: torch.dtype, parallel: Parallel) -> dict[str, float]:
    """Mean losses over the first `validate_on` held-out examples; the noise of batch i is a function of (seed, i)."""
    model.eval()
    count = min(len(held_out), cfg.validate_on)
    totals: dict[str, Tensor] = {}
    for i in range(parallel.rank, -(-count // VALIDATION_ROWS), parallel.world):       # whole batches, dealt to workers
        indices = torch.arange(i * VALIDATION_ROWS, min((i + 1) * VALIDATION_ROWS, count))
        batch, rng = held_out.take(indices).to(device), step_rng(seed, f"valid {i}", device)
        reseed(device, seed_of(seed, "valid", i))
        with torch.autocast(device.type, numbers, enabled=numbers != torch.float32):
            losses = cast(Trains, model).loss(batch, 1.0, rng)
        for name, loss in losses.items():
            total = loss.double() * len(indices) / count
            totals[name] = totals[name] + total if name in totals else total
    # A worker without a batch learns the names from worker 0, which always has one.
    names = json.loads(parallel.share(json.dumps(sorted(totals)).encode()))
    means = parallel.sum(torch.tensor([float(totals.get(name, 0.0)) for name in names], dtype=torch.float64))
    more = model.diagnose() if isinstance(model, Diagnoses) else {}
    return dict(zip(names, means.tolist(), strict=True)) | {name: float(value) for name, value in more.items()}


def named(split: str, values: Mapping[str, float]) -> dict[str, float]:
    """Values as they are recorded: split, slash, name."""
    return {f"{split}/{name}": value for name, value in values.items()}
