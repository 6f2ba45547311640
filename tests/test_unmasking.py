"""Laws of the stepper of masked diffusion: how much is written in a step, where, and with what words."""

import math

import pytest
import torch
from torch import Tensor

from trainables.config import ConfigError, override
from trainables.diffusion.absorbing import Absorbing
from trainables.diffusion.sampler import Sampling
from trainables.diffusion.unmasking import Ancestral, mixture
from trainables.randomness import step_rng

STEPPERS = [Ancestral(), Ancestral(temperature=0.1), Ancestral(temperature=0.0), Ancestral(top_k=1),
            Ancestral(top_p=0.3), Ancestral(temperature=3.0, top_k=2, order="confidence"),
            Ancestral(order="confidence")]


def at(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


@pytest.mark.parametrize("spindle", [0.0, 0.9])
@pytest.mark.parametrize("stepper", STEPPERS)
def test_a_step_hides_as_much_as_the_process_whatever_the_temperature(stepper, spindle):
    """And the last step leaves no mask.  Context-free Zipf words, so the share is known: t, or its spindle's."""
    torch.manual_seed(0)
    B, L, V, T = 64, 64, 12, 16
    process = Absorbing(spindle=spindle)
    weights = torch.cat([torch.linspace(0.3, -0.3, V - 1), torch.zeros(1)]).double()
    log_p = torch.cat([-torch.arange(1, V).float().log(), torch.tensor([-1e4])]).log_softmax(-1).clamp(-1e4)
    log_p = log_p.expand(B, L, V)
    p = log_p[0, 0].double().exp()
    rng, x = step_rng(0, 0), torch.full((B, L), V - 1)
    expected = torch.ones((), dtype=torch.float64)
    for k in range(T, 0, -1):
        t, s = at(k / T).expand(B, 1), at((k - 1) / T).expand(B, 1)
        expected = expected * (1 - (p * process.reveal(t, s, weights)[0]).sum())
        x = stepper.step(process, x, log_p, t, s, V - 1, rng, weights if spindle else None)
        if k > 1:
            assert float((x == V - 1).double().mean()) == pytest.approx(float(expected), abs=0.025)
            if not spindle:
                assert float(expected) == pytest.approx((k - 1) / T, abs=1e-6)
    assert not (x == V - 1).any()
    if stepper.top_k == 1 or stepper.temperature == 0.0 and not spindle:
        assert not x.any()
    if stepper == Ancestral() and not spindle:              # with one, a model that is the same at all times is wrong
        assert torch.bincount(x.flatten(), minlength=V)[:3].double().div(B * L).tolist() == pytest.approx(
            p[:3].tolist(), abs=0.03)


UNMASKING = {1.0: (0.77, 0.51, 0.25, 0.13, 0.0), 0.5: (1.0, 1.0, 0.996, 0.99, 0.0), 0.1: (1.0, 1.0, 1.0, 1.0, 0.0),
             None: (0.48, 0.15, 0.02, 0.004, 0.0)}             # by temperature, with top-k 30; None: no top-k


def zipf(p_mask: float) -> Tensor:
    """ln p of 30,522 Zipf words and the mask: the likeliest 29, 250 that share the others' mass, and the mask."""
    shares = 1 / torch.arange(1, 30_523, dtype=torch.float64)
    shares = shares / shares.sum()
    p = torch.cat([shares[:29], (shares[29:].sum() / 250).expand(250)]) * (1 - p_mask)
    assert p[29] < p[28]
    return torch.cat([p, torch.tensor([p_mask], dtype=torch.float64)]).clamp(min=1e-300).log().clamp(-1e4)


def still_hidden(stepper: Ancestral, log_p: Tensor) -> dict[int, float]:
    """The share of the masks that is left at t = k / 512, in steps of 2 / 512 from 1: a product over steps."""
    late = torch.arange(512, 0, -2, dtype=torch.float64)[:, None]
    both = mixture(Absorbing(), log_p.expand(256, -1), late / 512, (late - 2) / 512, len(log_p) - 1, None)
    stay = stepper.sharper(both).softmax(-1)[:, -1]
    return dict(zip((late - 2).flatten().int().tolist(), stay.cumprod(0).tolist(), strict=True))


@pytest.mark.parametrize("temperature", UNMASKING)
def test_as_published_temperature_and_top_k_decide_when_words_are_written(temperature):
    """The table, which was measured on about a thousand words: at the shipped temperature of .1 nothing is written
    before the last step."""
    stepper = Ancestral(as_published=True) if temperature is None else \
        Ancestral(as_published=True, temperature=temperature, top_k=30)
    found = still_hidden(stepper, zipf(0.0))
    for k, share in zip((256, 64, 8, 2, 0), UNMASKING[temperature], strict=True):
        assert found[k] == pytest.approx(share, abs=0.005 if share in (0, 1) else 0.045)


def test_as_published_a_model_that_says_the_mask_leaves_masks():
    published = Ancestral(as_published=True, top_k=30)
    assert still_hidden(published, zipf(0.12))[0] == pytest.approx(0.46, abs=0.005)
    log_p, x, t, s = zipf(0.12).expand(1, 2_000, -1), torch.full((1, 2_000), 279), at(0.5), at(0.25)
    written = {stepper: stepper.step(Absorbing(), x, log_p, t, s, 279, step_rng(0, 0)) != 279
               for stepper in (published, Ancestral(top_k=30))}
    share = float(published.sharper(mixture(Absorbing(), log_p[0, :1], t, s, 279, None)).softmax(-1)[0, -1])
    assert 1 - float(written[published].double().mean()) == pytest.approx(share, abs=0.04) and share > 0.7
    assert float(written[Ancestral(top_k=30)].double().mean()) == pytest.approx(0.5, abs=0.04)
    assert (Ancestral(top_k=30).step(Absorbing(), x, log_p, t, at(0.0), 279, step_rng(0, 0)) != 279).all()


def test_top_k_and_top_p_leave_the_words_they_should():
    log_p = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().double().expand(5000, 4)
    uniform = step_rng(0, 0).uniform((5000,)).double()
    one = torch.ones(1, 1, dtype=torch.float64)

    def shares(**how) -> list[float]:
        return (torch.bincount(Ancestral(**how).draw(log_p, one, uniform), minlength=4) / 5000).tolist()

    assert shares() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.02)
    assert shares(top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=0.02)
    assert shares(top_p=0.5) == [1, 0, 0, 0]
    assert shares(top_p=0.51) == pytest.approx([0.625, 0.375, 0, 0], abs=0.02)
    assert shares(temperature=0.5)[0] == pytest.approx(0.25 / 0.365, abs=0.02)


def test_words_that_cannot_be_are_never_drawn():
    """Not for uniforms at either end either, where a sum of floats may fall short of 1."""
    log_p = torch.tensor([-1e4, 0.2, 0.8, -1e4]).double()
    log_p = torch.where(log_p > -1, log_p.log(), log_p).expand(2, 4)
    words = Ancestral().draw(log_p, torch.ones(1, 1).double(), torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert words.tolist() == [1, 2]


def test_confidence_writes_the_surest_and_as_many():
    """The surest positions first; the count in each row is the dice's."""
    B, L, V = 50, 8, 3
    log_p = torch.full((B, L, V), -1e4)
    sure = torch.linspace(0.55, 0.95, L)
    log_p[..., 0], log_p[..., 1] = sure.log(), (1 - sure).log()
    x = torch.full((B, L), V - 1)
    t, s = at(1.0).expand(B, 1), at(0.5).expand(B, 1)
    by_dice = Ancestral(temperature=0.0).step(Absorbing(), x, log_p, t, s, V - 1, step_rng(0, 0))
    by_trust = Ancestral(temperature=0.0, order="confidence").step(Absorbing(), x, log_p, t, s, V - 1, step_rng(0, 0))
    written = (by_trust != V - 1)
    assert torch.equal(written.sum(1), (by_dice != V - 1).sum(1)) and 0 < written.double().mean() < 1
    assert (written.int().diff(dim=1) >= 0).all()


def test_what_is_known_is_written_at_once_and_does_not_count():
    B, L, V = 4, 6, 3
    log_p = torch.full((B, L, V), -1e4)
    log_p[..., 0] = log_p[..., 1] = math.log(0.5)
    log_p[:, -1] = -1e4
    log_p[:, -1, 1] = 0.0
    x = Ancestral().step(Absorbing(), torch.full((B, L), V - 1), log_p, at(1.0).expand(B, 1), at(0.999).expand(B, 1),
                         V - 1, step_rng(0, 0))
    assert (x[:, -1] == 1).all() and (x[:, :-1] == V - 1).double().mean() > 0.9


@pytest.mark.parametrize("wrong", [{"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}, {"order": "left"},
                                   {"order": "confidence", "as_published": True}])
def test_nonsense_is_refused(wrong):
    with pytest.raises((ConfigError, ValueError)):
        Ancestral(**wrong)
    assert override(Sampling(), {"stepper": Ancestral(top_k=3)}).stepper == Ancestral(top_k=3)
