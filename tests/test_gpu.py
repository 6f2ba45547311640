"""On a GPU: the systems learn, sample and resume as on a CPU, and a training step waits for nothing.

Noise is drawn where it is used, so a GPU's is another than a CPU's for the same (seed, step); what holds is that with
the same noise both do the same arithmetic, up to the order of sums in float32.  A GPU's own order of sums may differ
from run to run (attention's backward adds up as it comes), so going on where one was is as exact as doing it twice.

Skipped without CUDA.  What is printed (-s) are the figures of the paper's recipes on this device.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from published import trial as published_trial
from safetensors.torch import load_file
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from toy import Rows, Toy, recipe

from trainables.config import override
from trainables.diffusionbert import diffusionbert_laptop
from trainables.ld4lg import ld4lg_laptop
from trainables.ld4lg_annealed import ld4lg_annealed_laptop
from trainables.randomness import step_rng
from trainables.scorelm import scorelm_laptop
from trainables.stages import Context, Store
from trainables.system import Batch
from trainables.tencdm import tencdm_laptop
from trainables.text.corpora import Stories
from trainables.training import batches as feeding
from trainables.training.batches import Feed
from trainables.training.parallel import Parallel, in_step
from trainables.training.state import MODEL, trainable
from trainables.training.train import Objective, Stopped, train
from trainables.trial import Trial

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

CPU, GPU = torch.device("cpu"), torch.device("cuda")
DATA = Stories(size=600)
SHORT = {"steps": 30, "schedule.warmup": 3}              # of what a system stands on: it must be there, not good


def short(*paths: str) -> dict[str, Any]:
    return {f"{path}.{name}": value for path in paths for name, value in SHORT.items()}


SYSTEMS: dict[str, Callable[[], Trial]] = {
    "tencdm": lambda: override(tencdm_laptop(DATA), short("system.encoder.weights.training",
                                                          "system.decoder.training")),
    "ld4lg": lambda: override(ld4lg_laptop(DATA), short("system.representation.model.weights.training",
                                                        "system.representation.training.training")),
    "ld4lg_annealed": lambda: override(ld4lg_annealed_laptop(DATA),
                                       short("system.representation.model.weights.training")),
    "diffusionbert": lambda: override(diffusionbert_laptop(DATA), short("system.lm.weights.training")),
    "scorelm": lambda: scorelm_laptop(DATA),
}
STEPS = {"training.steps": 120, "training.record_every": 20, "training.validate_every": 60, "training.validate_on": 64,
         "training.schedule.warmup": 10, "training.save_every": 1_000}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """What systems stand on is made once, and on the CPU, so that both devices meet the same."""
    made = Store(tmp_path_factory.mktemp("gpu") / "stages")
    for make in SYSTEMS.values():
        trial = make()
        for stage in trial.system.needs_to_sample(DATA):
            Context(made).get(stage)
    return made


def trained(trial: Trial, store: Store, out: Path, device: torch.device, **how: Any) -> dict[str, dict[int, float]]:
    """The curves of training a trial's system; its weights are left in `out`."""
    curves: dict[str, dict[int, float]] = {}

    def record(step: int, metrics: Any) -> None:
        for name, value in metrics.items():
            curves.setdefault(name, {})[step] = value

    context = Context(store, record, device=device, **how)
    torch.manual_seed(0)
    system: Any = trial.system.build(trial.data, context)
    train(system, system.batches("train"), trial.training, seed=0, out=out, context=context,
          validate=system.batches("valid"))
    return curves


def apart(one: Path, other: Path) -> float:
    """The largest distance of two checkpoints' weights, as a share of the largest weight."""
    first, second = load_file(one / MODEL), load_file(other / MODEL)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max() / first[name].abs().max().clamp(min=1e-3))
               for name in first if first[name].is_floating_point())


# ---------------------------------------------------------------- learning


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_learns_in_bfloat16_and_samples(system, store, tmp_path):
    trial = override(SYSTEMS[system](), STEPS | {
        "training.steps": 300, "sampling.count": 40, "sampling.batch": 20, "sampling.steps": 10,
        "evaluation.references": 40})
    context = Context(store, device=GPU)
    folder = context.get(trial.samples())
    texts = [json.loads(line)["text"] for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(texts) == 40 and any(texts)
    curve = [json.loads(line) for line in (context.get(trial.checkpoint()) / "curve.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in curve if "train/loss" in row]
    print(f"\n{system}: loss {losses[0]:.3f} -> {losses[-1]:.3f} in bfloat16; {texts[0]!r}")
    assert losses[-1] < 0.95 * losses[0]


class HostDraws:
    """torch.rand and torch.randn as a CPU's generator of the same seed would draw, wherever the result is to lie."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.twins: dict[int, tuple[torch.Generator, torch.Generator]] = {}            # both are kept: an id is theirs
        for name in ("rand", "randn"):
            monkeypatch.setattr(torch, name, self.drawing(getattr(torch, name)))

    def drawing(self, draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def drawn(*shape: Any, generator: Any = None, device: Any = None, **how: Any) -> Tensor:
            if generator is None or generator.device.type == "cpu":
                return draw(*shape, generator=generator, device=device, **how)
            twin = torch.Generator().manual_seed(generator.initial_seed())
            twin = self.twins.setdefault(id(generator), (generator, twin))[1]
            return draw(*shape, generator=twin, **how).to(device)
        return drawn


@pytest.mark.parametrize("system", SYSTEMS)
def test_with_the_same_noise_a_gpu_computes_what_a_cpu_does(system, store, tmp_path, monkeypatch):
    HostDraws(monkeypatch)
    trial = override(SYSTEMS[system](), STEPS | {
        "training.steps": 6, "training.record_every": 1, "training.validate_every": 6, "training.schedule.warmup": 0,
        "training.precision": "float32", "training.optimizer.lr": 1e-3})
    there = trained(trial, store, tmp_path / "gpu", GPU)
    here = trained(trial, store, tmp_path / "cpu", CPU)
    for name in ("train/loss", "train/grad_norm", "valid/loss"):
        assert there[name] == pytest.approx(here[name], rel=2e-3), name
    print(f"\n{system}: first loss {there['train/loss'][1]:.7f} on the GPU, {here['train/loss'][1]:.7f} on the CPU")
    assert there["train/loss"][1] == pytest.approx(here["train/loss"][1], rel=1e-5)


@pytest.mark.parametrize("system", SYSTEMS)
def test_going_on_is_as_exact_as_doing_it_twice(system, store, tmp_path):
    trial = override(SYSTEMS[system](), STEPS | {"training.steps": 20, "training.schedule.warmup": 0})
    asked = iter(range(1, 1_000))
    with pytest.raises(Stopped):
        trained(trial, store, tmp_path / "resumed", GPU, should_stop=lambda: next(asked) == 9)
    trained(trial, store, tmp_path / "resumed", GPU)
    for name in ("once", "twice"):
        trained(trial, store, tmp_path / name, GPU)
    floor, resumed = (apart(tmp_path / "once", tmp_path / name) for name in ("twice", "resumed"))
    print(f"\n{system}: twice the same differs by {floor:.1e}, resumed by {resumed:.1e}")
    assert resumed <= 20 * floor


# ---------------------------------------------------------------- compiled


@pytest.mark.parametrize("system", SYSTEMS)
def test_compiled_it_computes_the_same(system, store, tmp_path):
    """In float32 and without dropout, whose units a compiled network draws otherwise; and it can go on, too."""
    trial = override(SYSTEMS[system](), STEPS | {
        "training.steps": 8, "training.record_every": 1, "training.validate_every": 4, "training.schedule.warmup": 0,
        "training.precision": "float32", "training.optimizer.lr": 1e-3})
    plain = trained(trial, store, tmp_path / "eager", GPU, compile_from=0)
    asked = iter(range(1, 1_000))
    with pytest.raises(Stopped):
        trained(trial, store, tmp_path / "compiled", GPU, compile_from=1, should_stop=lambda: next(asked) == 4)
    fused = trained(trial, store, tmp_path / "compiled", GPU, compile_from=1)
    assert fused["valid/loss"][8] == pytest.approx(plain["valid/loss"][8], rel=5e-3)
    assert fused["train/loss"][5] == pytest.approx(plain["train/loss"][5], rel=5e-3)


# ---------------------------------------------------------------- nothing is waited for


@pytest.fixture
def unwaiting() -> Iterator[Callable[[bool], None]]:
    """Switch: whether waiting for the device is an error."""
    def switch(on: bool) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")              # it says of itself that it does not see all of them
            torch.cuda.set_sync_debug_mode("error" if on else "default")

    yield switch
    switch(False)


@pytest.mark.parametrize("system", [name for name in SYSTEMS if name != "diffusionbert"])
def test_a_step_waits_for_nothing(system, store, tmp_path, unwaiting):
    """DiffusionBERT's does: how many tokens are hidden decides how large its loss is."""
    trial = override(SYSTEMS[system](), STEPS | {"training.steps": 12, "training.record_every": 12,
                                                 "training.validate_every": 12})
    steps = iter(range(1, 100))

    def asked() -> bool:
        step = next(steps)
        if step in (3, 10):
            unwaiting(step == 3)
        return False

    trained(trial, store, tmp_path, GPU, should_stop=asked)


class Parts:
    """Some examples with everything a batch may have."""

    def __init__(self, count: int = 23):
        rng = torch.Generator().manual_seed(0)
        self.ids = torch.randint(100, (count, 5), generator=rng)
        self.vectors = torch.randn(count, 5, 3, generator=rng)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Tensor) -> Batch:
        source = Batch(ids=self.ids[indices] + 1, mask=self.ids[indices] > 10)
        return Batch(ids=self.ids[indices], mask=self.ids[indices] > 50, source=source, label=indices,
                     encodings=self.vectors[indices])


def parts_of(batch: Batch) -> list[Tensor]:
    own = [value for value in vars(batch).values() if isinstance(value, Tensor)]
    return own + (parts_of(batch.source) if batch.source is not None else [])


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_reaches_the_gpu_is_what_a_cpu_sees(held, accumulate, store, monkeypatch):
    """From pinned memory, gathered ahead; or gathered by the GPU, which holds all examples."""
    monkeypatch.setattr(feeding, "HELD_SHARE", 0.3 if held else 0.0)
    system: Any = SYSTEMS["tencdm"]().system.build(DATA, Context(store))
    how: dict[str, Any] = {"seed": 0, "batch": 8, "accumulate": accumulate, "rank": 0, "world": 1}
    for batches in (Parts(), system.batches("train")):
        here, there = Feed(batches, device=CPU, **how), Feed(batches, device=GPU, **how)
        assert there.held == (held and not isinstance(batches, Parts))
        for step in [0, 1, 2, 7, 8]:                         # and a jump, as after a resume
            for micro in range(accumulate):
                ours, theirs = parts_of(here.at(step, micro)), parts_of(there.at(step, micro))
                assert len(ours) == len(theirs)
                for mine, other in zip(ours, theirs, strict=True):
                    assert other.device.type == "cuda" and torch.equal(mine, other.cpu())


# ---------------------------------------------------------------- several workers


def test_a_replica_over_nccl_is_the_model(tmp_path):
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        place = Parallel.joined(GPU)
        assert place.any(True) and place.share(b"x") == b"x" and float(place.mean(torch.ones(1))) == 1.0
        place.barrier()
        plain, replica = (Toy().to(GPU) for _ in range(2))
        batch = Rows(8).take(torch.arange(8)).to(GPU)
        for loss_of in (Objective(plain), in_step(Objective(replica))):
            loss_of(batch, 0.0, step_rng(0, 0, GPU))["loss"].backward()
        for one, other in zip(trainable(plain).values(), trainable(replica).values(), strict=True):
            assert one.grad is not None and other.grad is not None and torch.allclose(one.grad, other.grad, atol=1e-6)
    finally:
        dist.destroy_process_group()


def _worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    curves: dict[int, float] = {}
    context = Context(Store(f"{folder}/stages{rank}"), lambda step, metrics: curves.update(
        {step: metrics["train/loss"]} if "train/loss" in metrics else {}), device=GPU)
    train(Toy(), Rows(30), recipe(precision="float32"), seed=3, out=Path(folder) / f"out{rank}", context=context,
          validate=Rows(150, seed=1), parallel=Parallel.joined(GPU))
    (Path(folder) / f"curve{rank}.json").write_text(json.dumps(curves))
    dist.destroy_process_group()


def test_two_workers_on_one_gpu_give_the_one_worker_curve(tmp_path):
    """Joined by gloo, for NCCL wants a GPU for each."""
    curves: dict[int, float] = {}
    context = Context(Store(tmp_path / "stages"), lambda step, metrics: curves.update(
        {step: metrics["train/loss"]} if "train/loss" in metrics else {}), device=GPU)
    train(Toy(), Rows(30), recipe(precision="float32"), seed=3, out=tmp_path / "alone", context=context,
          validate=Rows(150, seed=1))
    spawn(_worker, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        found = json.loads((tmp_path / f"curve{rank}.json").read_text())
        assert {int(step): value for step, value in found.items()} == pytest.approx(curves, rel=2e-4)


# ---------------------------------------------------------------- the papers' sizes

PAPERS = {"tencdm": 101_983_488, "ld4lg": 187_928_960, "ld4lg_annealed": 0, "diffusionbert": 109_514_298,
          "scorelm": 0}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("published")


@pytest.mark.parametrize("system", PAPERS)
def test_a_papers_recipe_makes_a_step(system, shelf, tmp_path):
    """With its global batch, on random weights of the published shapes; everything it stands on is made as usual."""
    store = Store(shelf / "stages")
    trial = published_trial(system, "paper", shelf, store, count=512)
    trial = override(trial, {"training.steps": 2, "training.record_every": 1, "training.validate_on": 8,
                             "training.schedule.warmup": 0})
    context = Context(store, device=GPU)
    system_, curves = trial.system.build(trial.data, context), {}
    parameters = sum(p.numel() for p in trainable(system_).values())              # type: ignore[arg-type]
    torch.cuda.reset_peak_memory_stats()
    train(system_, system_.batches("train"), trial.training, seed=0, out=tmp_path,            # type: ignore[arg-type]
          context=replace(context, record=lambda step, metrics: curves.update({step: metrics})))
    print(f"\n{system}: {parameters:,} trained, batch {trial.training.batch}, "
          f"peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB, loss {curves[2]['train/loss']:.4f}, "
          f"{trial.training.batch / curves[2]['train/examples_per_second']:.3f} s in step 2")
    assert parameters == (PAPERS[system] or parameters)
    assert torch.isfinite(torch.tensor([curves[2]["train/loss"], curves[2]["train/grad_norm"]])).all()
