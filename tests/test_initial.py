"""Laws of initial weights, over every network: parts named and shaped alike begin alike, if their seed is one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainables.networks.initial import drawn
from trainables.networks.latent_transformer import LatentTransformer
from trainables.networks.score_transformer import ScoreTransformer
from trainables.networks.transformer import Transformer

LATENT: dict[str, Any] = {"width": 16, "heads": 2, "positions": 12}

# Each with two builds that differ in what the network has.
PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "a deeper denoiser that reads": (
        lambda: Transformer(layers=2, width=16, heads=2, feedforward=32, positions=12).build(16),
        lambda: Transformer(layers=4, width=16, heads=2, feedforward=32, positions=12).build(16, reads_source=True)),
    "a wider feed-forward": (
        lambda: Transformer(layers=2, width=16, heads=2, feedforward=32, positions=12).build(16),
        lambda: Transformer(layers=2, width=16, heads=2, feedforward=64, positions=12).build(16)),
    "a hint, classes and a source": (
        lambda: LatentTransformer(layers=4, dense=0, **LATENT).build(8, hint=False),
        lambda: LatentTransformer(layers=4, dense=2, **LATENT).build(8, hint=True, classes=3, source=10)),
    "what is attended to": (
        lambda: LatentTransformer(layers=2, dense=0, reads="attended", **LATENT).build(8, hint=True),
        lambda: LatentTransformer(layers=4, dense=0, reads="attended", relative=True, **LATENT).build(
            8, hint=True, source=10)),
    "a guess": (
        lambda: ScoreTransformer(layers=2, width=16, heads=2, feedforward=32, told=8).build(8, 20, False),
        lambda: ScoreTransformer(layers=4, width=16, heads=2, feedforward=32, told=8).build(8, 20, True)),
}


def weights(build: Callable[[], nn.Module], seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(build().named_parameters())


@pytest.mark.parametrize("name", PAIRS)
def test_what_two_networks_share_begins_alike(name):
    one, other = (weights(build, 1) for build in PAIRS[name])
    differ = {key.rpartition(".")[0] for key in one.keys() | other.keys()
              if key not in one or key not in other or one[key].shape != other[key].shape}
    shared = [key for key in one if key.rpartition(".")[0] not in differ]   # a weight's shape scales its bias
    assert differ and len(shared) > len(one) / 3
    for key in shared:
        assert torch.equal(one[key], other[key]), key


@pytest.mark.parametrize("build", [pair[1] for pair in PAIRS.values()], ids=list(PAIRS))
def test_no_two_weights_are_the_same_draw_and_seeds_differ(build):
    one, other = weights(build, 1), weights(build, 2)
    spread = {key: value for key, value in one.items() if value.unique().numel() > 1 and value.requires_grad}   # drawn
    assert len(spread) > len(one) / 4
    for key, value in spread.items():
        assert not torch.equal(value, other[key]), key
        assert not any(torch.equal(value, twin) for name, twin in spread.items() if name != key), key


def test_the_generator_is_left_where_the_seed_had_put_it():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    drawn(nn.Linear(3, 4))
    assert torch.equal(torch.rand(3), expected)


def test_the_scale_of_a_weight_is_still_the_layers_own():
    torch.manual_seed(3)
    weight = drawn(nn.Linear(400, 300)).weight.detach()
    assert weight.abs().max() <= 400 ** -0.5 and weight.std() == pytest.approx(400 ** -0.5 / 3 ** 0.5, rel=0.02)
