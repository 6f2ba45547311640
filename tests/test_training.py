"""The loop: resuming equals not stopping, micro-batches equal the batch, and what is left behind is whole."""

import copy
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from toy import LENGTH, Rows, Toy, recipe

from trainables.config import ConfigError
from trainables.randomness import Rng
from trainables.stages import Context, Store
from trainables.training import compiling
from trainables.training.average import Ema, NoAverage, PowerEma, averaged
from trainables.training.batches import Feed, Order
from trainables.training.learning_rate import Cosine
from trainables.training.meter import Meter
from trainables.training.optimizers import AdamW, Lion
from trainables.training.parallel import ALONE
from trainables.training.state import MODEL, STATE
from trainables.training.train import Diverged, Stopped, Training, arithmetic, load_weights, train

CPU = torch.device("cpu")


class Desk:
    """A context that remembers what was recorded and stops when asked to."""

    def __init__(self, out: Path, stop_after: int = -1, crash_at: int = -1):
        self.curves: dict[str, dict[int, float]] = {}
        self.steps: list[int] = []
        self.asked, self.stop_after, self.crash_at = 0, stop_after, crash_at
        self.context = Context(Store(out / "stages"), self.record, self.should_stop)

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == self.crash_at:
            raise KeyboardInterrupt
        self.steps.append(step)
        for name, value in metrics.items():
            self.curves.setdefault(name, {})[step] = value

    def should_stop(self) -> bool:
        self.asked += 1
        return self.asked == self.stop_after


def run(out: Path, cfg: Training, *, model: nn.Module | None = None, rows: int = 30, validate: bool = True,
        **desk: int) -> Desk:
    here = Desk(out, **desk)
    train(Toy(dropout=0.3) if model is None else model, Rows(rows), cfg, seed=3, out=out, context=here.context,
          validate=Rows(150, seed=1) if validate else None)
    return here


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / MODEL)


def assert_equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


# ---------------------------------------------------------------- resuming


@pytest.mark.parametrize("optimizer", [AdamW(lr=1e-2), Lion(lr=1e-3)])
@pytest.mark.parametrize("ema", [Ema(decay=0.9), PowerEma(decay=0.9, after=3), NoAverage()])
def test_stopping_and_resuming_equals_not_stopping(tmp_path, optimizer, ema):
    """To the bit, with dropout, micro-batches and a schedule, though the second half starts from another model object
    and a disturbed global random state."""
    cfg = recipe(optimizer=optimizer, ema=ema, accumulate=2, schedule=Cosine(warmup=5))
    whole = run(tmp_path / "whole", cfg)
    with pytest.raises(Stopped) as stopped:
        run(tmp_path / "parts", cfg, stop_after=7)
    assert stopped.value.step == 7 and (tmp_path / "parts" / STATE).is_file()
    torch.manual_seed(99)
    rest = run(tmp_path / "parts", cfg, model=Toy(dropout=0.3, seed=8))
    assert min(rest.steps) == 8
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    for name in whole.curves.keys() - {"train/examples_per_second", "train/tokens_per_second"}:
        tail = {step: value for step, value in whole.curves[name].items() if step > 7}
        assert rest.curves[name] == tail, name


def test_a_crash_costs_the_steps_since_the_last_save_and_nothing_else(tmp_path):
    run(tmp_path / "whole", recipe())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "crashed", recipe(), crash_at=16)
    rest = run(tmp_path / "crashed", recipe())
    assert min(rest.steps) == 15 and rest.asked == 20 - 12 - 1      # saved at 12; nobody is asked after the last step
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "crashed"))


def test_validation_does_not_change_the_weights(tmp_path):
    run(tmp_path / "with", recipe())
    run(tmp_path / "without", recipe(), validate=False)
    assert_equal(weights(tmp_path / "with"), weights(tmp_path / "without"))


def test_another_seed_is_another_training(tmp_path):
    for seed in (3, 4):
        train(Toy(), Rows(30), recipe(), seed=seed, out=tmp_path / str(seed), context=Desk(tmp_path).context)
    assert not torch.equal(weights(tmp_path / "3")["read.weight"], weights(tmp_path / "4")["read.weight"])


def test_the_state_of_another_configuration_is_refused(tmp_path):
    with pytest.raises(Stopped):
        run(tmp_path, recipe(), stop_after=3)
    with pytest.raises(ValueError, match="another configuration"):
        run(tmp_path, recipe(clip=0.5))


def test_what_is_finished_is_not_done_again(tmp_path):
    run(tmp_path, recipe())
    before = weights(tmp_path)
    model = Toy(seed=5)
    assert run(tmp_path, recipe(), model=model).steps == []
    assert torch.equal(model.read.weight, before["read.weight"])
    assert run(tmp_path, recipe(steps=21)).steps[-1] == 21


# ---------------------------------------------------------------- what is left behind


def test_weights_hold_what_was_trained_and_persistent_buffers(tmp_path):
    model = Toy()
    run(tmp_path, recipe(), model=model)
    assert weights(tmp_path).keys() == {
        "read.weight", "network.0.weight", "network.0.bias", "network.3.weight", "network.3.bias", "seldom", "scale"}
    assert not (tmp_path / STATE).parent.exists()
    assert not list(tmp_path.glob("*.new"))
    assert not model.training


def test_weights_are_the_average_and_the_model_holds_them(tmp_path):
    """Ema by hand: mean <- decay mean + (1 - decay) weights, from the weights of every step."""
    history: list[Tensor] = []

    class Watched(Toy):
        def loss(self, batch, progress, rng):
            history.append(self.seldom.detach().clone())
            return super().loss(batch, progress, rng)

    model = Watched()
    cfg = recipe(ema=Ema(decay=0.6), steps=12, optimizer=AdamW(lr=0.1))
    run(tmp_path, cfg, model=model, validate=False)
    newest = Watched()
    run(tmp_path / "newest", recipe(ema=NoAverage(), steps=12, optimizer=AdamW(lr=0.1)), model=newest, validate=False)
    steps = [*history[1:12], newest.seldom.detach()]               # weights after steps 1 .. 12
    mean = history[0]
    for n, now in enumerate(steps, start=1):
        decay = min(0.6, (1 + n) / (10 + n))
        mean = decay * mean + (1 - decay) * now
    torch.testing.assert_close(weights(tmp_path)["seldom"], mean)
    torch.testing.assert_close(model.seldom.detach(), mean)
    assert not torch.allclose(mean, steps[-1])


def test_load_weights_round_trip_and_refusals(tmp_path):
    trained, fresh = Toy(), Toy(seed=1)
    run(tmp_path, recipe(), model=trained)
    load_weights(fresh, tmp_path)
    for name, parameter in fresh.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter, dict(trained.named_parameters())[name])
    load_weights(Toy().requires_grad_(False), tmp_path)            # frozen before or after: the same
    with pytest.raises(ValueError, match="no checkpoint"):
        load_weights(fresh, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="another model"):
        load_weights(nn.Linear(2, 2), tmp_path)
    narrow = Toy()
    narrow.seldom = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match=r"seldom is \(8,\), not \(3,\)"):
        load_weights(narrow, tmp_path)


# ---------------------------------------------------------------- a step


def test_micro_batches_add_up_to_the_batch(tmp_path):
    """Without clipping a bigger share would show; gradients are means over the global batch either way."""
    whole = run(tmp_path / "1", recipe(clip=0.0), model=Toy())
    parts = run(tmp_path / "4", recipe(clip=0.0, accumulate=4), model=Toy())
    for name in ("train/loss", "train/grad_norm", "valid/loss"):
        assert parts.curves[name] == pytest.approx(whole.curves[name], rel=1e-4)
    assert whole.curves["train/rows"][20] == 8 and parts.curves["train/rows"][20] == 2


def test_records_come_when_due_and_once_a_step(tmp_path):
    desk = run(tmp_path, recipe(schedule=Cosine(warmup=10)))
    assert desk.steps == [4, 5, 8, 10, 12, 15, 16, 20]
    assert list(desk.curves["train/loss"]) == [4, 8, 12, 16, 20]
    assert list(desk.curves["valid/loss"]) == [5, 10, 15, 20]
    assert desk.curves["train/lr"][4] == pytest.approx(1e-2 * 3 / 10)
    examples, tokens = desk.curves["train/examples_per_second"], desk.curves["train/tokens_per_second"]
    assert examples[8] > 0 and all(tokens[step] == pytest.approx(LENGTH * examples[step]) for step in examples)
    assert desk.curves["train/loss"][20] < desk.curves["train/loss"][4]


def test_validation_points_differ_by_the_model_alone(tmp_path):
    """Held still, the model gets the same validation loss at every step, in evaluation mode, over all examples."""
    desk = run(tmp_path, recipe(optimizer=AdamW(lr=1e-30, weight_decay=0.0), ema=NoAverage()))
    assert len(set(desk.curves["valid/loss"].values())) == 1
    assert desk.curves["valid/rows"][20] == pytest.approx((64 * 64 + 64 * 64 + 22 * 22) / 150)
    assert len(set(desk.curves["train/loss"].values())) == 5


def test_clipping_bounds_the_step_and_the_norm_is_the_one_before(tmp_path):
    desk = run(tmp_path, recipe(clip=1e-3), validate=False)
    assert min(desk.curves["train/grad_norm"].values()) > 1e-2
    still = Toy()
    before = still.write.weight.detach().clone()
    cfg = recipe(clip=1e-12, optimizer=AdamW(lr=1e-2, eps=1.0, weight_decay=0.0), ema=NoAverage(), steps=1)
    run(tmp_path / "still", cfg, model=still, validate=False)
    torch.testing.assert_close(still.write.weight.detach(), before, atol=1e-12, rtol=0)


def test_frozen_modules_stay_in_evaluation_mode(tmp_path):
    seen: list[tuple[bool, bool]] = []

    class Watched(Toy):
        def loss(self, batch, progress, rng):
            seen.append((self.language_model[2].training, self.network.training))
            return super().loss(batch, progress, rng)

    model = Watched()
    frozen = {name: value.clone() for name, value in model.language_model.state_dict().items()}
    run(tmp_path, recipe(), model=model)
    assert {mode[0] for mode in seen} == {False}
    assert {mode[1] for mode in seen} == {False, True}
    assert_equal(model.language_model.state_dict(), frozen)


def test_nothing_to_train_or_to_train_on_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no parameter"):
        run(tmp_path, recipe(), model=Toy().requires_grad_(False))
    with pytest.raises(ValueError, match="no examples"):
        run(tmp_path, recipe(), rows=0)


@pytest.mark.parametrize("changes, message", [
    ({"steps": 0}, "steps must be positive"), ({"accumulate": 3}, "3 equal micro-batches"), ({"clip": -1.0}, "clip"),
    ({"schedule": Cosine(warmup=21)}, "longer than training"), ({"precision": "half"}, "precision"),
])
def test_training_refuses_nonsense(changes, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        recipe(**changes)


# ---------------------------------------------------------------- numbers


def test_divergence_says_where_and_travels(tmp_path):
    with pytest.raises(Diverged, match="step 7: loss nan") as error:
        run(tmp_path, recipe(), model=Toy(poison=7))
    assert error.value.step == 7 and math.isnan(error.value.loss)
    again = copy.copy(error.value)                                               # by what pickle would ask it for
    assert (str(again), again.step) == (str(error.value), 7)
    assert str(copy.copy(Stopped(4))) == str(Stopped(4))


def test_a_late_look_still_finds_the_step():
    """On a GPU nobody looks until a record; the step where it began is named all the same."""
    meter = Meter(ALONE, accumulate=2, device=CPU)
    for step in range(1, 11):
        for _ in range(2):
            meter.add({"loss": torch.tensor(float("inf") if step >= 6 else 1.0)})
        meter.add({"grad_norm": torch.tensor(1.0)})
    with pytest.raises(Diverged, match="step 106: loss inf"):
        meter.means(step=110, batch=8)


def test_bfloat16_trains_what_the_first_guess_has_touched(tmp_path):
    """Autocast keeps converted weights; those made without gradient must not be used where one is needed."""
    model = Toy()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    run(tmp_path, recipe(precision="bfloat16", steps=12, optimizer=AdamW(lr=1e-2, weight_decay=0.0)), model=model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32
            assert not torch.equal(parameter, before[name]), name


def test_auto_precision_is_float32_on_every_cpu_and_what_the_hardware_multiplies_on_a_gpu(monkeypatch):
    assert arithmetic("auto", CPU) == torch.float32
    for able, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, able=able: able)
        assert arithmetic("auto", torch.device("cuda")) == expected
    assert arithmetic("float32", CPU) == torch.float32
    assert arithmetic("bfloat16", CPU) == torch.bfloat16


# ---------------------------------------------------------------- averages


def test_average_warm_ups_follow_the_originals():
    """spec/latent_systems.md 1.8 and 2.6."""
    tencdm, ld4lg = Ema(decay=0.9999), PowerEma(decay=0.9999)
    for n, decay in {1: 0.181818, 10: 0.55, 100: 0.918182, 1000: 0.991089, 10_000: 0.999101}.items():
        assert tencdm.decay_at(n) == pytest.approx(decay, abs=5e-7)
    assert tencdm.decay_at(89_989) < 0.9999 and tencdm.decay_at(89_990) == pytest.approx(0.9999, abs=1e-12)
    assert [ld4lg.decay_at(n) for n in (1, 100, 101)] == [0.0, 0.0, 0.0]
    for n, decay in {102: 0.405396, 110: 0.822172, 200: 0.968377, 1100: 0.994377, 10_100: 0.999,
                     100_000: 0.999822}.items():
        assert ld4lg.decay_at(n) == pytest.approx(decay, abs=5e-7)
    assert ld4lg.decay_at(215_543) == pytest.approx(0.9999, abs=1e-9) and ld4lg.decay_at(215_544) == 0.9999


@pytest.mark.parametrize("ema", [Ema(decay=0.5), PowerEma(decay=0.5, after=1), NoAverage()])
def test_swapping_twice_changes_nothing(ema):
    layer = nn.Linear(3, 3)
    average = ema.build(list(layer.parameters()))
    with torch.no_grad():
        layer.weight.add_(1.0)
    before, identity = layer.weight.detach().clone(), id(layer.weight)
    with averaged(average):
        assert torch.equal(layer.weight, before) == isinstance(ema, NoAverage)
    assert torch.equal(layer.weight, before) and id(layer.weight) == identity


# ---------------------------------------------------------------- order


def test_every_epoch_is_a_permutation_and_batches_cross_epochs():
    order = Order(10, seed=4)
    places = order.places(0, 40).reshape(4, 10)
    assert (places.sort(1).values == torch.arange(10)).all()
    assert len({tuple(epoch.tolist()) for epoch in places}) == 4
    assert torch.equal(order.places(7, 33), places.flatten()[7:33])
    assert torch.equal(Order(10, seed=4).places(25, 31), places.flatten()[25:31])
    assert not torch.equal(Order(10, seed=5).places(0, 10), places[0])


@pytest.mark.parametrize("world, accumulate", [(1, 1), (2, 1), (1, 4), (2, 2), (4, 2)])
def test_workers_and_micro_batches_share_the_batch_like_cards(world, accumulate):
    whole = Order(30, seed=1).places(16, 24)
    dealt = torch.empty(8, dtype=torch.int64)
    for rank in range(world):
        rows = Rows(30)
        feed = Feed(rows, seed=1, batch=8, accumulate=accumulate, rank=rank, world=world, device=CPU)
        for micro in range(accumulate):
            rows.taken.clear()
            assert len(feed.at(2, micro)) == 8 // (world * accumulate)
            dealt[micro * world + rank::world * accumulate] = torch.tensor(rows.taken)
    assert torch.equal(dealt, whole)


def test_what_a_gpu_would_be_fed_is_what_a_cpu_gets(monkeypatch):
    """The thread that gathers ahead changes nothing, also when a step is skipped or asked for again."""
    monkeypatch.setattr("trainables.training.batches.pinned", lambda batch: batch)
    monkeypatch.setattr("trainables.training.batches.sent", lambda batch, device: batch)
    arguments = {"seed": 1, "batch": 8, "accumulate": 2, "rank": 0, "world": 1}
    plain = Feed(Rows(30), **arguments, device=CPU)
    ahead = Feed(Rows(30), **arguments, device=torch.device("cuda"))
    for at in [(0, 0), (0, 1), (1, 0), (5, 1), (6, 0), (6, 0), (6, 1)]:
        assert torch.equal(plain.at(*at).ids, ahead.at(*at).ids)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_first_share_of_a_batch_is_the_first_rows_of_each_part(share, parts):
    """Counted on the host, it is what a device would count; and all parts together have the global batch's share."""
    rows, mine = 12, []
    for part in range(parts):
        rng = Rng(torch.Generator().manual_seed(0), part, parts)
        among = rng.rows(rows) < share * rows * parts
        mine.append(rng.leading(rows, share))
        assert torch.equal(among, torch.arange(rows) < mine[-1])
    assert sum(mine) == math.ceil(round(share * rows * parts, 9))


def test_a_machine_says_from_how_many_steps_on_it_compiles(monkeypatch, tmp_path):
    for said, steps in ((None, 0), ("0", 0), ("2000", 2_000)):
        monkeypatch.delenv(compiling.COMPILE_FROM, raising=False)
        if said:
            monkeypatch.setenv(compiling.COMPILE_FROM, said)
        assert Context(Store(tmp_path)).compile_from == steps
    monkeypatch.setenv(compiling.COMPILE_FROM, "yes")
    with pytest.raises(ConfigError, match="PALIMPSEST_COMPILE_FROM: must be a number of steps"):
        Context(Store(tmp_path))


@pytest.mark.parametrize("device, steps, least, triton, able", [
    ("cuda", 2_000, 2_000, True, True), ("cuda", 1_999, 2_000, True, False), ("cuda", 2_000, 0, True, False),
    ("cuda", 2_000, 2_000, False, False), ("cpu", 1_000_000, 1, True, False)])
def test_long_trainings_on_a_gpu_are_compiled_where_that_is_possible(device, steps, least, triton, able, monkeypatch):
    monkeypatch.setattr(compiling, "find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr(compiling.shutil, "which", lambda name: "/usr/bin/cc")
    assert compiling.compiles(torch.device(device), steps, least) == able
