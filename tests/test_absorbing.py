"""Laws of the absorbing process: its marginals, its posterior, its bound, against full vectors and full enumeration.

The toy: words 0, 1, 2 and the mask 3, texts of two words; everything that a chain of T steps can do is enumerated.
"""

import itertools
import math
import typing

import pytest
import torch
from torch import Tensor

from trainables.config import ConfigError, override
from trainables.diffusion.absorbing import (
    PUBLISHED_CAP,
    Absorbing,
    CosineSurvival,
    Mutual,
    Survival,
    density_term,
    mixture_term,
    step_term,
)
from trainables.diffusion.steppers import LinearGrid, LogSnrGrid
from trainables.diffusion.unmasking import mixture
from trainables.randomness import step_rng
from trainables.text.word_information import sentence_weights, weigh

MASK, X0 = 3, (0, 1)
SCHEDULES = [member() for member in typing.get_args(Survival)]
D = torch.tensor([0.3, -0.05, -0.25, 0.0], dtype=torch.float64)           # weights of the toy's words


def at(value: float) -> Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


def toy_logits(state: tuple[int, ...], position: int) -> Tensor:
    """The spec's predictor: of position p, word v with o in the other place."""
    other = state[1 - position]
    return torch.tensor([math.sin((position + 1) * (v + 1) + 0.5 * (other + 1)) for v in range(3)], dtype=torch.float64)


def toy(state: tuple[int, ...], position: int, mask_too: bool = False) -> Tensor:
    """log p [V] of a hidden position; with `mask_too`, the mask has logit -2, else it is no answer."""
    last = torch.tensor([-2.0 if mask_too else -1e4], dtype=torch.float64)
    return torch.cat([toy_logits(state, position), last]).log_softmax(-1)


# ---------------------------------------------------------------- schedules and marginals


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_hides_nothing_at_0_and_all_at_1_and_its_slope_is_its_derivative(schedule):
    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    u = schedule.hidden(t)
    assert u[0] == 0 and u[-1] == 1 and (u.diff() > 0).all()
    inner = t[1:-1]
    step = 1e-6
    slope = (schedule.hidden(inner + step) - schedule.hidden(inner - step)) / (2 * step)
    torch.testing.assert_close(schedule.slope(inner), slope, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_grid_even_in_log_snr_ends_where_it_should(schedule):
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, atol=1e-9, rtol=1e-9)
    for grid in (LinearGrid(), LogSnrGrid()):
        times = grid.times(schedule, 8)
        assert times[0] == 1 and times[-1] == 0 and (times.diff() < 0).all()


@pytest.mark.parametrize("T", [8, 512, 2048])
def test_survival_is_the_product_of_the_published_betas(T):
    s = torch.arange(T, dtype=torch.float64)
    beta = {"mutual": 1 / (T - s)}
    c = torch.cos((torch.arange(T + 1, dtype=torch.float64) / T + 0.008) / 1.008 * math.pi / 2)
    beta["cosine"] = (1 - c[1:] / c[:-1]).clamp(0, 0.999)
    for name, schedule in (("mutual", Mutual()), ("cosine", CosineSurvival())):
        keep = torch.cumprod(1 - torch.cat([torch.zeros(1), beta[name]]), 0)
        keep[-1] = 0.0
        times = torch.arange(T + 1, dtype=torch.float64)[:, None] / T
        torch.testing.assert_close(Absorbing(schedule=schedule).keep(times)[:, 0], keep, atol=1e-12, rtol=1e-9)


def test_the_published_spindle_has_its_published_survivals():
    """Counts (1000, 100, 10, 1), sentence (0, 2, 3, 1), lambda .3, T 8."""
    value, _ = weigh(torch.tensor([1000, 100, 10, 1]), "frequency")
    torch.testing.assert_close(value, torch.tensor([1.0, 0.668010, 0.347081, 0.100329], dtype=torch.float64),
                               atol=1e-6, rtol=0)
    mask = torch.ones(1, 4, dtype=torch.bool)
    d = sentence_weights(value[[0, 2, 3, 1]][None], mask, "frequency")
    assert d.tolist()[0] == pytest.approx([0.471145, -0.181774, -0.428526, 0.139156], abs=1e-6)
    known = {1: (0.929090, 0.854131, 0.825803, 0.890976), 2: (0.849945, 0.711440, 0.659096, 0.779519),
             4: (0.641344, 0.445468, 0.371442, 0.541747), 6: (0.349945, 0.211440, 0.159096, 0.279519),
             7: (0.179090, 0.104131, 0.075803, 0.140976)}
    for t, keep in known.items():
        found = Absorbing(spindle=0.3).keep(at(t / 8), d, PUBLISHED_CAP)
        assert found.tolist()[0] == pytest.approx(keep, abs=1e-6)
        assert float(found.mean()) == pytest.approx(1 - t / 8, abs=1e-12)
    assert Absorbing(spindle=0.3).keep(at(1e-4), d, PUBLISHED_CAP).max() == PUBLISHED_CAP
    assert Absorbing(spindle=0.3).keep(at(0.0), d, PUBLISHED_CAP).min() == 1


def test_the_papers_information_form_has_its_published_survivals():
    """a_t = 1 - t/T - lambda sin(pi t/T) (1 - mean H / H_i), before clipping."""
    value, _ = weigh(torch.tensor([1000, 100, 10, 1]), "information")
    h = value[[0, 2, 3, 1]][None]
    d = sentence_weights(h, torch.ones(1, 4, dtype=torch.bool), "information")
    keep = 0.5 + 0.3 * d
    assert keep.tolist()[0] == pytest.approx([10.343802, 0.426676, 0.352251, 0.643443], rel=2e-6)
    assert float(keep.mean()) == pytest.approx(2.941543, rel=2e-6)
    assert float((keep * h).sum() / h.sum()) == pytest.approx(0.5, abs=1e-9)
    assert float(Absorbing(spindle=0.3).keep(at(0.5), d, PUBLISHED_CAP).max()) == PUBLISHED_CAP


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_tokens_are_hidden_as_often_as_the_process_says(schedule):
    process, ids = Absorbing(schedule=schedule, spindle=0.9), torch.zeros(1, dtype=torch.long).expand(200, 300)
    ids = ids + torch.arange(300) % 3
    for t in (0.1, 0.5, 0.9):
        x_t = process.corrupt(ids, at(t).expand(200, 1), MASK, step_rng(0, 0), D[ids])
        assert torch.equal(x_t[x_t != MASK], ids[x_t != MASK])
        for word in range(3):
            expected = float(process.hidden(at(t), D[word]))
            assert float((x_t[ids == word] == MASK).double().mean()) == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("edge", [1.0, -1.0])
def test_a_spindle_that_passes_the_check_never_reveals_at_a_negative_rate_and_one_that_does_not_would(schedule, edge):
    weights = torch.tensor([0.5 * edge, 0.1])
    limit = 2 / math.pi
    process = Absorbing(schedule=schedule, spindle=limit)
    assert process.settled(weights) == process
    assert override(process, {"spindle": 1.0, "relative": True}).settled(weights).spindle == pytest.approx(limit)
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    assert (process.hidden(t, weights).diff(dim=0) > 0).all()
    beyond = override(process, {"spindle": limit * 1.05})
    with pytest.raises(ValueError, match=r"may be at most 1 / \(pi 0.5\) = 0.637"):
        beyond.settled(weights)
    assert not (beyond.hidden(t, weights).diff(dim=0) > 0).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_is_the_limit_of_the_reveal(schedule):
    process = Absorbing(schedule=schedule, spindle=0.9)
    t = torch.tensor([[0.1], [0.5], [0.9], [1.0]], dtype=torch.float64)
    step = 1e-7
    torch.testing.assert_close(process.reveal(t, t - step, D) / step, process.rate(t, D), atol=1e-5, rtol=1e-5)
    assert torch.equal(process.reveal(t, torch.zeros_like(t), D), torch.ones(4, 4, dtype=torch.float64))
    assert not process.reveal(t, t, D).any()


def test_mdlms_scalars():
    """Its clock never quite reaches 1: hidden = (1 - eps) t, sigma = -ln of the rest; its cross-entropy's weight."""
    t, eps = torch.tensor([[0.1], [0.5], [0.9], [1.0]], dtype=torch.float64), 1e-3
    process, theirs = Absorbing(), (1 - eps) * t
    assert process.hidden(theirs).flatten().tolist() == pytest.approx([0.0999, 0.4995, 0.8991, 0.999], abs=1e-9)
    assert (-process.keep(theirs).log()).flatten().tolist() == pytest.approx(
        [0.105249, 0.692148, 2.293625, 6.907755], abs=1e-6)
    weight = (1 - eps) * process.rate(theirs)                                   # of a unit of their time
    assert weight.flatten().tolist() == pytest.approx([10, 2, 1.111111, 1], rel=1e-6)


# ---------------------------------------------------------------- against full vectors


def full_vector_loss(logits: Tensor, ids: Tensor, x_t: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) [B, L] by V-vectors over all words, as DiffusionBERT's code does it.

    a [B, L] = keep(s), b [B, 1] = P(hidden at t | visible at s)
    """
    V = logits.shape[-1]
    a, b = a[..., None], b[..., None]

    def marginal(q0: Tensor) -> Tensor:
        q = a * q0
        return torch.cat([q[..., :-1], 1 - a * (1 - q0[..., -1:])], -1)

    seen = torch.nn.functional.one_hot(x_t, V).double()
    step = torch.where((x_t == V - 1)[..., None], b.expand(*x_t.shape, V).clone(), (1 - b) * seen)
    step[..., -1] = (x_t == V - 1).double()
    q = step * marginal(torch.nn.functional.one_hot(ids, V).double())
    p = step * marginal(logits.softmax(-1))
    q, p = (each / each.sum(-1, keepdim=True) for each in (q, p))
    return (torch.special.xlogy(q, q) - torch.special.xlogy(q, torch.where(q > 0, p, 1.0))).sum(-1)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("spindle", [0.0, 0.3])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_the_mixture_term_is_the_full_vectors_kl_and_so_are_its_gradients(schedule, spindle, place):
    torch.manual_seed(0)
    B, L, V, T = 4, 6, 11, 64
    process = Absorbing(schedule=schedule, spindle=spindle)
    k = {"first": 1, "middle": T // 2, "last": T}[place]
    t, s = torch.full((B, 1), k / T, dtype=torch.float64), torch.full((B, 1), (k - 1) / T, dtype=torch.float64)
    ids = torch.randint(V - 1, (B, L))
    d = torch.randn(B, L, dtype=torch.float64) * 0.4
    d = d - d.mean(1, keepdim=True)
    x_t = torch.where(torch.rand(B, L) < (0.5 if place == "first" else float(k) / T), V - 1, ids)
    hidden = x_t == V - 1
    assert hidden.any()
    a, b = process.keep(s, d, PUBLISHED_CAP).expand(B, L), process.base_reveal(t, s)
    logits = torch.randn(B, L, V, dtype=torch.float64) * 2
    full, closed = (logits.clone().requires_grad_() for _ in range(2))
    expected = full_vector_loss(full, ids, x_t, a, b)
    found = torch.zeros(B, L, dtype=torch.float64)
    found[hidden] = mixture_term(closed.log_softmax(-1)[hidden], ids[hidden], V - 1, a[hidden],
                                 b.expand(B, L)[hidden])
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-8)
    expected.sum().backward()
    found.sum().backward()
    torch.testing.assert_close(closed.grad, full.grad, atol=1e-10, rtol=1e-7)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_the_step_term_is_the_full_kl_of_token_dependent_revealing(place):
    """Against p(v) = pi_v r_v, p(stay) = 1 - the sum, spelled out; without the spindle it is r times cross-entropy."""
    torch.manual_seed(1)
    n, V, T = 7, 5, 64
    k = {"first": 1, "middle": 32, "last": 64}[place]
    process, weights = Absorbing(spindle=0.5), torch.rand(V, dtype=torch.float64) - 0.5
    words, logits = torch.randint(V, (n,)), torch.randn(n, V, dtype=torch.float64, requires_grad=True)
    r = process.reveal(at(k / T), at((k - 1) / T), weights).expand(n, V)
    log_p = logits.log_softmax(-1)
    p = torch.cat([log_p.exp() * r, 1 - (log_p.exp() * r).sum(-1, keepdim=True)], 1)
    r_x = r.gather(1, words[:, None])
    q = torch.zeros_like(p).scatter(1, words[:, None], r_x)
    q[:, -1] = 1 - r_x[:, 0]
    expected = (torch.special.xlogy(q, q) - torch.special.xlogy(q, p.clamp(min=1e-300))).sum(-1)
    found = step_term(log_p, words, r)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    gradients = [torch.autograd.grad(each.sum(), logits, retain_graph=True)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-9, rtol=1e-9)
    plain = step_term(log_p, words, torch.full((n, 1), 0.25))
    torch.testing.assert_close(plain, -0.25 * log_p.gather(1, words[:, None]).squeeze(1))
    torch.testing.assert_close(step_term(log_p, words, torch.full((n, V), 0.25, dtype=torch.float64)), plain)


def test_the_density_is_the_limit_of_steps():
    torch.manual_seed(2)
    process, words, log_p = Absorbing(spindle=0.5), torch.tensor([0, 1, 2]), torch.randn(3, 4).double().log_softmax(-1)
    t, step = at(0.4), 1e-6
    found = density_term(log_p, words, process.rate(t, D).expand(3, 4))
    torch.testing.assert_close(step_term(log_p, words, process.reveal(t, t - step, D).expand(3, 4)) / step, found,
                               atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(density_term(log_p, words, Absorbing().rate(t)),
                               -log_p.gather(1, words[:, None]).squeeze(1) / 0.4)


# ---------------------------------------------------------------- against enumeration


def subsets(x0: tuple[int, ...]) -> list[tuple[int, ...]]:
    return list(itertools.product(*((word, MASK) for word in x0)))


def chain(process: Absorbing, T: int, mixture: bool = False) -> dict[tuple[int, ...], float]:
    """P(x_0) of every outcome of the T-step sampler from (mask, mask), enumerated step by step."""
    states = {(MASK, MASK): 1.0}
    for k in range(T, 0, -1):
        following: dict[tuple[int, ...], float] = {}
        for state, mass in states.items():
            each = [here(process, state, place, k, T, mixture) for place in range(2)]
            for words in itertools.product(range(4), repeat=2):
                p = mass * float(each[0][words[0]] * each[1][words[1]])
                if p:
                    following[words] = following.get(words, 0.0) + p
        states = following
    return states


def here(process: Absorbing, state: tuple[int, ...], place: int, k: int, T: int, mixture: bool) -> Tensor:
    """p(x_s at this place | x_t) [4]"""
    if state[place] != MASK:
        return torch.eye(4, dtype=torch.float64)[state[place]]
    t, s = at(k / T), at((k - 1) / T)
    pi = toy(state, place, mixture).exp()
    if mixture:
        a, b = process.keep(s)[0, 0], process.base_reveal(t, s)[0, 0]
        p = torch.cat([b * a * pi[:3], ((1 - a) + a * pi[3])[None]])
        return p / p.sum()
    r = process.reveal(t, s, D if process.spindle else torch.zeros(4))[0]
    return torch.cat([(pi * r)[:3], (pi * (1 - r))[:3].sum()[None]])


def bound_terms(process: Absorbing, T: int, x0: tuple[int, ...] = X0, mixture: bool = False) -> list[float]:
    """Terms T-1 ... 0 of the bound on -ln p(x0): the expectation over x_t of what the closed forms say, enumerated."""
    terms = []
    for k in range(T, 0, -1):
        t, s, total = at(k / T), at((k - 1) / T), 0.0
        for state in subsets(x0):
            weights = [float(process.hidden(t, D[word] if process.spindle else None)) for word in x0]
            mass = math.prod(w if seen == MASK else 1 - w for w, seen in zip(weights, state, strict=True))
            for place in range(2):
                if mass and state[place] == MASK:
                    total += mass * term(process, state, place, x0, t, s, mixture)
        terms.append(total)
    return terms


def term(process, state, place, x0, t, s, mixture: bool) -> float:
    log_p, word = toy(state, place, mixture)[None], torch.tensor([x0[place]])
    if mixture:
        return float(mixture_term(log_p, word, MASK, process.keep(s)[0], process.base_reveal(t, s)[0]))
    r = process.reveal(t, s, D if process.spindle else None)
    return float(step_term(log_p, word, r))


def test_the_toy_predictor_is_the_specs():
    assert toy((3, 3), 0)[:3].exp().tolist() == pytest.approx([0.574623, 0.234110, 0.191267], abs=1e-6)
    assert toy((3, 3), 0, True).exp().tolist() == pytest.approx([0.538273, 0.219300, 0.179167, 0.063259], abs=1e-6)
    assert toy((3, 3), 1, True).exp().tolist() == pytest.approx([0.115836, 0.186712, 0.664038, 0.033414], abs=1e-6)


@pytest.mark.parametrize(("T", "exact", "bound"), [
    (1, 2.198246, 2.198246), (4, 2.352054, 2.391734), (8, 2.380156, 2.423982), (64, 2.405411, 2.452199),
    (1024, 2.408842, 2.455978)])
def test_the_bound_and_the_chain_without_the_mask_as_an_answer(T, exact, bound):
    outcomes = chain(Absorbing(), T)
    assert sum(outcomes.values()) == pytest.approx(1, abs=1e-12)
    assert not any(MASK in words for words in outcomes)
    assert -math.log(outcomes[X0]) == pytest.approx(exact, abs=1e-6)
    assert sum(bound_terms(Absorbing(), T)) == pytest.approx(bound, abs=1e-6)


@pytest.mark.parametrize(("T", "exact", "bound", "left"), [
    (4, 2.424459, 2.471243, 0.080966), (8, 2.447661, 2.500582, 0.078923), (64, 2.468993, 2.526691, 0.077424)])
def test_the_bound_and_the_chain_of_the_mixture(T, exact, bound, left):
    outcomes = chain(Absorbing(), T, mixture=True)
    assert -math.log(outcomes[X0]) == pytest.approx(exact, abs=1e-6)
    assert sum(bound_terms(Absorbing(), T, mixture=True)) == pytest.approx(bound, abs=1e-6)
    assert sum(p for words, p in outcomes.items() if MASK in words) == pytest.approx(left, abs=1e-6)


def test_single_terms():
    assert bound_terms(Absorbing(), 4) == pytest.approx([0.549561, 0.581809, 0.614057, 0.646305], abs=1e-6)
    assert bound_terms(Absorbing(), 4, mixture=True) == pytest.approx([0.550437, 0.583278, 0.617512, 0.720016],
                                                                      abs=1e-6)


def test_a_long_chain_in_long_steps_is_a_short_chain():
    """T = 8 with step 2 is T = 4, with step 4 T = 2: only the two times of a step matter."""
    assert sum(bound_terms(Absorbing(), 4, mixture=True)) == pytest.approx(2.471243, abs=1e-6)
    assert sum(bound_terms(Absorbing(), 2, mixture=True)) == pytest.approx(2.413115, abs=1e-6)


@pytest.mark.parametrize(("process", "T"), [*itertools.product(
    [Absorbing(schedule=schedule, spindle=spindle) for schedule in SCHEDULES for spindle in (0.0, 0.3, 1.0)],
    [1, 4, 8]),
    (Absorbing(spindle=0.3), 64)])
def test_the_bound_is_one_for_every_text(process, T):
    outcomes = chain(process, T)
    assert sum(outcomes.values()) == pytest.approx(1, abs=1e-12) and len(outcomes) == 9
    for x0 in itertools.product(range(3), repeat=2):
        assert sum(bound_terms(process, T, x0)) >= -math.log(outcomes[x0]) - 1e-12


@pytest.mark.parametrize(("T", "exact", "bound"), [
    (8, 2.306159, 2.371447), (64, 2.331262, 2.401585), (512, 2.334590, 2.405452)])
def test_the_corrected_spindle(T, exact, bound):
    process = Absorbing(spindle=0.3)
    assert -math.log(chain(process, T)[X0]) == pytest.approx(exact, abs=1e-6)
    assert sum(bound_terms(process, T)) == pytest.approx(bound, abs=1e-6)


def continuous_bound(process: Absorbing, count: int = 4000) -> float:
    """The integral over t of the density's expectation, by the midpoint rule."""
    total = 0.0
    for i in range(count):
        t = at((i + 0.5) / count)
        rate = process.rate(t, D if process.spindle else None)
        for state in subsets(X0):
            hidden = [float(process.hidden(t, D[word] if process.spindle else None)) for word in X0]
            mass = math.prod(h if seen == MASK else 1 - h for h, seen in zip(hidden, state, strict=True))
            total += sum(mass * float(density_term(toy(state, place)[None], torch.tensor([X0[place]]), rate))
                         for place in range(2) if state[place] == MASK) / count
    return total


def test_in_continuous_time_the_bound_is_the_mean_over_orders():
    """Orders 2.765759 and 2.146700; and their mean is the same under any schedule."""
    first = [-float(toy((3, 3), 0)[0] + toy((0, 3), 1)[1]), -float(toy((3, 3), 1)[1] + toy((3, 1), 0)[0])]
    assert sorted(first, reverse=True) == pytest.approx([2.765759, 2.146700], abs=1e-6)
    assert continuous_bound(Absorbing(), 500) == pytest.approx(2.456229, abs=2e-6)
    assert continuous_bound(Absorbing(schedule=CosineSurvival()), 1000) == pytest.approx(2.456229, abs=1e-5)


def test_in_continuous_time_the_spindles_bound_is_the_specs():
    assert continuous_bound(Absorbing(spindle=0.3), 1000) == pytest.approx(2.406006, abs=3e-6)


@pytest.mark.parametrize(("T", "published", "exact"), [(8, 2.474538, 2.535994), (64, 2.442819, 2.560485)])
def test_the_published_spindles_sum_is_below_what_it_should_bound(T, published, exact):
    """Sentence-centred, with the schedule's own rate; f from counts (1000, 100, 10).  It is reported, and no bound."""
    value, _ = weigh(torch.tensor([1000, 100, 10]), "frequency")
    d = sentence_weights(value[[0, 1]][None], torch.ones(1, 2, dtype=torch.bool), "frequency")
    process, total = Absorbing(spindle=0.3), 0.0
    for k in range(T, 0, -1):
        t, s = at(k / T), at((k - 1) / T)
        late = process.hidden(t, d, PUBLISHED_CAP)[0].tolist()
        keep, b = process.keep(s, d, PUBLISHED_CAP)[0], process.base_reveal(t, s)[0]
        for state in subsets(X0):
            mass = math.prod(h if seen == MASK else 1 - h for h, seen in zip(late, state, strict=True))
            total += sum(mass * float(mixture_term(toy(state, place, True)[None], torch.tensor([X0[place]]), MASK,
                                                   keep[place:place + 1], b))
                         for place in range(2) if state[place] == MASK)
    assert total == pytest.approx(published, abs=1e-6)
    found = -math.log(published_chain(process, value, T)[X0])
    assert found == pytest.approx(exact, abs=1e-6) and total < found


def published_chain(process: Absorbing, value: Tensor, T: int) -> dict[tuple[int, ...], float]:
    """P(x_0) of every outcome of the published sampler, the masks it leaves included, enumerated step by step."""
    states = {(MASK, MASK): 1.0}
    for k in range(T, 0, -1):
        following: dict[tuple[int, ...], float] = {}
        for state, mass in states.items():
            guesses = torch.stack([toy(state, place, True) for place in range(2)])
            likely = guesses[:, :3].argmax(-1)[None]
            d = sentence_weights(value[likely], torch.ones(1, 2, dtype=torch.bool), "frequency")[0]
            t, s, visible = at(k / T), at((k - 1) / T), torch.eye(4, dtype=torch.float64)
            each = [mixture(process, guesses[place][None], t, s, MASK, d[place].view(1, 1))[0].exp()
                    if state[place] == MASK else visible[state[place]] for place in range(2)]
            for words in itertools.product(range(4), repeat=2):
                p = mass * float(each[0][words[0]] * each[1][words[1]])
                if p:
                    following[words] = following.get(words, 0.0) + p
        states = following
    assert sum(states.values()) == pytest.approx(1, abs=1e-12)
    return states


@pytest.mark.parametrize("wrong", [{"spindle": -0.3}, {"spindle": 1.1, "relative": True}])
def test_nonsense_is_refused(wrong):
    with pytest.raises((ConfigError, ValueError)):
        Absorbing(**wrong)
