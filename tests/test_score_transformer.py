"""Laws of the score LM's network: documents are apart, places restart, the noise level is told, nothing overflows."""

import pytest
import torch
from torch import Tensor

from trainables.networks.score_transformer import (
    FREQUENCIES,
    ScoreNetwork,
    ScoreTransformer,
    fourier,
    neighbours,
    places,
)

SMALL = ScoreTransformer(layers=2, width=32, heads=2, feedforward=48, told=16, dropout=0.0)
ROW = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, -1]])             # equal lengths side by side, and a pad


def network(cfg: ScoreTransformer = SMALL, reads_guess: bool = True) -> ScoreNetwork:
    """One that has been told something already: films start at zero."""
    torch.manual_seed(0)
    net = cfg.build(8, 5, reads_guess).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return net


def states(seed: int = 0, length: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """x [1, L, 8], noise [1, L], guess [1, L, 8]"""
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(1, length, 8, generator=g), torch.randn(1, length, generator=g),
            torch.randn(1, length, 8, generator=g))


# ---------------------------------------------------------------- documents are apart


def test_two_documents_of_length_two_see_eight_cells():
    together = neighbours(torch.tensor([[0, 0, 1, 1]]))
    assert int(together.sum()) == 8                                     # 16 where lengths are compared
    assert together[0].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


def test_places_restart_and_skip_what_is_not_seen():
    assert places(neighbours(ROW))[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 0]
    assert places(neighbours(torch.tensor([[-1, 0, 0, -1, 0]])))[0].tolist() == [0, 0, 1, 0, 2]


@torch.no_grad()
@pytest.mark.parametrize("cfg", [SMALL, ScoreTransformer(layers=1, width=16, heads=4, feedforward=24, theta=1_000.0,
                                                         as_published=True)])
def test_packed_documents_say_what_they_say_alone(cfg):
    net, (x, noise, guess) = network(cfg), states()
    packed = net(x, noise, ROW, guess)
    for number in range(3):
        mine = ROW[0] == number
        alone = net(x[:, mine], noise[:, mine], None, guess[:, mine])
        torch.testing.assert_close(packed[:, mine], alone, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_document_does_not_see_its_neighbours(number):
    """Not in a single bit: other words, other noise, other guesses beside it, in documents of its own length too."""
    net, first, other = network(), states(0), states(1)
    mine = (ROW == number)
    mixed = [torch.where(mine[..., None] if a.dim() == 3 else mine, a, b) for a, b in zip(first, other, strict=True)]
    before, after = net(first[0], first[1], ROW, first[2]), net(mixed[0], mixed[1], ROW, mixed[2])
    assert torch.equal(before[mine], after[mine])
    assert not torch.isclose(before[~mine], after[~mine]).all(-1).any()


@torch.no_grad()
def test_each_token_sees_all_of_its_document():
    net, (x, noise, guess) = network(), states()
    before = net(x, noise, ROW, guess)
    for position in range(11):
        changed = x.clone()
        changed[0, position] += 1
        moved = ~torch.isclose(net(changed, noise, ROW, guess), before).all(-1)[0]
        assert torch.equal(moved, ROW[0] == ROW[0, position])


@torch.no_grad()
def test_what_is_not_to_be_seen_is_not_seen_and_leaves_no_gap():
    net, (x, noise, guess) = network(), states(length=5)
    hidden = torch.tensor([[0, 0, -1, 0, 0]])
    kept = hidden[0] == 0
    torch.testing.assert_close(net(x, noise, hidden, guess)[:, kept],
                               net(x[:, kept], noise[:, kept], None, guess[:, kept]), atol=2e-5, rtol=1e-4)
    assert bool(net(x, noise, torch.full_like(hidden, -1), guess).isfinite().all())


@torch.no_grad()
def test_order_matters_and_one_document_needs_no_segment():
    net, (x, noise, guess) = network(), states(length=6)
    whole = net(x, noise, None, guess)
    torch.testing.assert_close(net(x, noise, torch.zeros(1, 6, dtype=torch.long), guess), whole, atol=2e-5, rtol=1e-4)
    turned = net(x.flip(1), noise.flip(1), None, guess.flip(1)).flip(1)
    assert not torch.isclose(turned, whole, atol=1e-3).all(-1).any()


# ---------------------------------------------------------------- the noise level


@torch.no_grad()
def test_films_start_as_the_identity_unless_as_published():
    (x, noise, guess), published = states(), ScoreTransformer(**{**vars(SMALL), "as_published": True})
    for cfg, same in ((SMALL, True), (published, False)):
        torch.manual_seed(0)
        net = cfg.build(8, 5, True).eval()
        assert torch.allclose(net(x, noise, ROW, guess), net(x, noise + 0.3, ROW, guess)) is same


@torch.no_grad()
def test_a_level_for_a_row_is_that_level_for_each_token():
    net, (x, _, guess) = network(), states()
    one, each, other = (net(x, torch.full((1, count), level), ROW, guess)
                        for count, level in ((1, 0.3), (12, 0.3), (1, 0.4)))
    torch.testing.assert_close(one, each)
    assert not torch.allclose(one, other)


def test_fourier_features_are_the_same_everywhere():
    features = fourier(torch.tensor([[0.0, 0.25]]))
    assert features.shape == (1, 2, 1 + 2 * FREQUENCIES)
    assert features[0, 0].tolist() == [0.0] * (1 + FREQUENCIES) + [1.0] * FREQUENCIES
    w = torch.atan2(features[0, 1, 1:1 + FREQUENCIES], features[0, 1, 1 + FREQUENCIES:])[:8] / (2 * torch.pi * 0.25)
    half_normal = torch.distributions.Normal(0.0, 1.0).icdf(0.5 + (torch.arange(8) + 0.5) / FREQUENCIES / 2)
    torch.testing.assert_close(w, half_normal, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- size, numbers, refusals


def test_the_published_block_has_4_46_million_parameters():
    net = ScoreTransformer().build(128, 100, False)
    block = sum(p.numel() for p in net.layers[0].parameters())
    assert block == 4 * 512**2 + 3 * 512 * 2_048 + 2 * (128 * 1_024 + 1_024) and round(block / 1e6, 2) == 4.46
    assert round(8 * block / 1e6, 1) == 35.7


@torch.no_grad()
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_bfloat16_stays_finite_and_near(scale):
    net, (x, noise, guess) = network(), states()
    with torch.autocast("cpu", torch.bfloat16):
        low = net(x * scale, noise, ROW, guess * scale)
    high = net(x * scale, noise, ROW, guess * scale)
    assert bool(low.isfinite().all())
    assert float((low.float() - high).norm() / high.norm()) < 0.05


@pytest.mark.parametrize(("wrong", "message"), [
    ({"width": 30, "heads": 4}, "even multiple of heads"), ({"width": 16, "heads": 8}, "4 wide"),
    ({"layers": 0}, "layers"), ({"told": 0}, "told"), ({"dropout": 1.0}, "dropout"), ({"theta": 0.5}, "theta")])
def test_sizes_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ScoreTransformer(**wrong)
