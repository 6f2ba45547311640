"""Several workers are one worker: the same global batches, noise, losses and weights, and they act together.

Each test of two workers starts two processes joined by gloo; what they saw comes back as JSON.
"""

import json
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.multiprocessing.spawn import spawn
from toy import Rows, Toy, recipe

from trainables.stages import Context, Store
from trainables.training.optimizers import AdamW
from trainables.training.parallel import ALONE, Parallel
from trainables.training.state import MODEL, STATE
from trainables.training.train import Diverged, Stopped, Training, train


def run(out: Path, cfg: Training, parallel: Parallel = ALONE, stop_after: int = -1, poison: int = -1,
        seed: int = 0) -> dict[str, Any]:
    """The recorded curves, or what ended the training."""
    curves: dict[str, dict[int, float]] = {}
    asked = iter(range(1, 10_000))

    def record(step, metrics):
        for name, value in metrics.items():
            curves.setdefault(name, {})[step] = value

    context = Context(Store(out / "stages"), record, lambda: next(asked) == stop_after)
    try:
        train(Toy(seed=seed, poison=poison), Rows(30), cfg, seed=3, out=out, context=context,
              validate=Rows(150, seed=1), parallel=parallel)
    except (Stopped, Diverged) as error:
        return {"ended": str(error)}
    return curves


def _worker(rank: int, world: int, folder: str, job: Callable[[Path, Parallel], Any]) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    try:
        answer = job(Path(folder), Parallel.joined())
    except Exception:
        answer = {"error": traceback.format_exc()}
    (Path(folder) / f"answer{rank}.json").write_text(json.dumps(answer))
    dist.destroy_process_group()


def together(folder: Path, job: Callable[[Path, Parallel], Any]) -> list[Any]:
    """What `job` answers on each of two workers."""
    spawn(_worker, args=(2, str(folder), job), nprocs=2)
    return [json.loads((folder / f"answer{rank}.json").read_text()) for rank in range(2)]


# ---------------------------------------------------------------- one curve


def plain(folder: Path, parallel: Parallel) -> Any:
    # Worker 1 begins with other weights and in another folder: worker 0's count.
    return run(folder / f"plain{parallel.rank}", recipe(), parallel, seed=parallel.rank)


def in_micro_batches(folder: Path, parallel: Parallel) -> Any:
    return run(folder / f"micro{parallel.rank}", recipe(accumulate=2), parallel)


@pytest.mark.parametrize("job, accumulate", [(plain, 1), (in_micro_batches, 2)])
def test_two_workers_give_the_one_worker_curve(tmp_path, job, accumulate):
    """One parameter is used by worker 0 only, and not in its last micro-batch; the first guess has no gradient."""
    alone = run(tmp_path / "alone", recipe(accumulate=accumulate))
    first, second = together(tmp_path, job)
    assert "error" not in first, first
    assert first == second
    for name in ("train/loss", "train/grad_norm", "train/lr", "valid/loss"):
        curve = {int(step): value for step, value in first[name].items()}
        assert curve == pytest.approx(alone[name], rel=2e-4), name
    folder = tmp_path / ("plain" if job is plain else "micro")
    ours, theirs = load_file(tmp_path / "alone" / MODEL), load_file(f"{folder}0/{MODEL}")
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(theirs[name], ours[name], atol=1e-4, rtol=1e-3)
    assert not Path(f"{folder}1").exists()                  # only worker 0 writes


# ---------------------------------------------------------------- acting together


def small_things(folder: Path, parallel: Parallel) -> Any:
    cfg, answers = recipe(optimizer=AdamW(lr=1e-3)), {}
    answers["any"] = [parallel.any(parallel.rank == 1), parallel.any(False)]
    answers["mean"] = parallel.mean(torch.tensor([1.0, float(parallel.rank)])).tolist()
    answers["sum"] = parallel.sum(torch.tensor([1.0, float(parallel.rank)])).tolist()
    answers["share"] = [parallel.share(b"abc" if parallel.rank == 0 else b"").decode(), parallel.share(b"").decode()]
    # Only worker 1 is asked to stop, or sees a loss that is no number.
    answers["stop"] = run(folder / "stopped", cfg, parallel, stop_after=7 if parallel.rank == 1 else -1)["ended"]
    answers["state"] = (folder / "stopped" / STATE).is_file()
    answers["diverged"] = run(folder / "bad", cfg, parallel, poison=5 if parallel.rank == 1 else -1)["ended"]
    # What two began, two can end, though worker 1 sees none of worker 0's disk.
    answers["resumed"] = run(folder / ("stopped" if parallel.rank == 0 else "elsewhere"), cfg, parallel)
    answers["again"] = run(folder / ("stopped" if parallel.rank == 0 else "elsewhere"), cfg, parallel)
    run(folder / "elastic", cfg, parallel, stop_after=7)
    return answers


def test_workers_stop_fail_and_resume_together(tmp_path):
    first, second = together(tmp_path, small_things)
    assert "error" not in first, first
    assert first == second
    assert first["any"] == [True, False]
    assert first["mean"] == [1.0, 0.5] and first["sum"] == [2.0, 1.0]
    assert first["share"] == ["abc", ""]
    assert "after step 7" in first["stop"] and first["state"]
    assert "step 5: loss nan" in first["diverged"]
    assert min(int(step) for step in first["resumed"]["train/loss"]) == 8
    assert first["again"] == {}

    whole = run(tmp_path / "whole", recipe(optimizer=AdamW(lr=1e-3)))
    alone = run(tmp_path / "elastic", recipe(optimizer=AdamW(lr=1e-3)))             # two began, one ends
    for curves in (first["resumed"], alone):
        assert curves["valid/loss"].popitem()[1] == pytest.approx(whole["valid/loss"][20], rel=2e-4)


def test_alone_is_the_identity():
    model = Toy()
    values = torch.tensor([1.0, 2.0])
    assert ALONE.wrap(model) is model and ALONE.mean(values) is values
    assert ALONE.any(True) and not ALONE.any(False) and ALONE.share(b"x") == b"x"
    ALONE.barrier()
    with pytest.raises(RuntimeError, match="no process group"):
        Parallel.joined()


def test_a_batch_that_does_not_split_over_the_workers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="8 does not split over 3 workers x 1 micro-batches"):
        run(tmp_path, recipe(), Parallel(rank=0, world=3))
