"""Laws of LD4LG's networks: published sizes, connections from where they should be, nothing read that is not there."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainables.networks.latent_transformer import LatentDenoiser, LatentTransformer, bucket, sinusoid
from trainables.networks.perceiver import Perceiver, PerceiverAutoencoder, fixed_norm

B, L, D, S, E = 3, 6, 8, 5, 10
ATTENDED = LatentTransformer(dense=0, relative=True, reads="attended", clock="index")


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def tiny(changes: dict[str, Any] | None = None, awake: bool = True, **what: Any) -> LatentDenoiser:
    """A small network; awake: none of its weights is zero, so that everything that is connected has an effect."""
    said = {"layers": 4, "width": 16, "heads": 2, "positions": 12, "dropout": 0.0, "dense": 2}
    torch.manual_seed(0)
    network = LatentTransformer(**{**said, **(changes or {})}).build(D, **what).eval()       # type: ignore[arg-type]
    if awake:
        with torch.no_grad():
            for parameter in network.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.3)
    return network


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    t = torch.tensor([[0.1], [0.5], [0.9]])
    return {"x_t": draw(B, L, D), "t": t, "signal": 1 - t,
            "mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]).bool()}


@pytest.fixture
def more() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {"hint": torch.randn(B, L, D, generator=generator), "label": torch.tensor([0, 1, 2]),
            "source": torch.randn(B, S, E, generator=generator),
            "source_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]).bool()}


EVERYTHING = {"hint": True, "classes": 3, "source": E}
READS = ["concatenated", "attended"]


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(("build", "count"), [
    (lambda: LatentTransformer().build(64), 187_928_960),
    (lambda: LatentTransformer().build(64, classes=4), 190_295_168),
    (lambda: LatentTransformer().build(64, source=768), 216_850_304),
    (lambda: LatentTransformer().build(64, source=2_048), 217_833_344),
    (lambda: LatentTransformer(dense=0).build(64), 184_387_712),
    (lambda: ATTENDED.build(768), 214_342_272),                                  # the annealing thesis
    (lambda: ATTENDED.build(768, hint=False), 185_420_928),
    (lambda: Perceiver().build(768, 64), 25_618_432),
    (lambda: Perceiver().build(768, 64).compress, 4_285_312),
    (lambda: Perceiver().build(768, 64).expand, 21_333_120),
])
def test_parameter_counts_are_the_papers(build, count):
    with torch.device("meta"):
        assert parameters(build()) == count


@pytest.mark.parametrize(("changes", "words"), [
    ({"layers": 0}, "at least 1"), ({"heads": 5}, "heads must divide"), ({"width": 33, "heads": 3}, "must be even"),
    ({"dropout": 1.0}, "dropout"), ({"dense": 3}, "half of the 4 layers"), ({"dense": -1}, "dense")])
def test_nonsense_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        tiny(changes)
    with pytest.raises(ValueError, match="must be at least"):
        Perceiver(latents=0)
    with pytest.raises(ValueError, match="must divide the language model's width of 100, and 12 do not"):
        Perceiver().build(100, 64)


def test_the_times_embedding_is_the_published_one():
    said = sinusoid(torch.tensor([[1000 * 0.5]]), 768)[0, 0, [0, 1, 383, 384, 385]]
    torch.testing.assert_close(said, torch.tensor([-0.467772, -0.921769, 0.049979, -0.883849, -0.387739]),
                               atol=2e-6, rtol=0)


def test_buckets_are_t5s():
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-300, 301)
    assert torch.equal(bucket(distance), T5Attention._relative_position_bucket(distance, True, 32, 128))


# ---------------------------------------------------------------- the denoiser


@pytest.mark.parametrize("reads", READS)
@torch.no_grad()
def test_the_output_is_zero_at_first(reads, inputs, more):
    for changes in ({}, {"relative": True, "clock": "index"}, {"scale_shift": False}):
        network = tiny({"reads": reads, **changes}, awake=False, **EVERYTHING)
        assert not network(**inputs, **more).any()


def test_long_connections_come_from_the_mirrored_layers_and_as_published_from_the_layer_before():
    assert LatentTransformer().connections() == {9: 2, 10: 1, 11: 0}
    assert LatentTransformer(as_published=True).connections() == {9: 2, 10: 9, 11: 10}
    assert LatentTransformer(dense=0).connections() == {}


@pytest.mark.parametrize("as_published", [False, True])
@torch.no_grad()
def test_a_late_layer_merges_what_the_early_one_said(as_published, inputs):
    """Seen from outside: each merge is shown the state and the output of its source."""
    network = tiny({"layers": 6, "dense": 3, "as_published": as_published})
    said, merged = {}, {}
    for i, layer in enumerate(network.layers):
        layer.register_forward_hook(lambda _, __, output, i=i: said.update({i: output}))
    for name, merge in network.merge.items():
        merge.register_forward_hook(lambda _, given, __, name=name: merged.update({int(name): given[0]}))
    network(**inputs)
    sources = {3: 2, 4: 3, 5: 4} if as_published else {3: 2, 4: 1, 5: 0}
    assert merged.keys() == sources.keys()
    for late, early in sources.items():
        before, skip = merged[late].chunk(2, -1)
        assert torch.equal(before, said[late - 1]) and torch.equal(skip, said[early])
        assert torch.equal(before, skip) == (late - 1 == early)                  # the published ones: nothing new


@pytest.mark.parametrize("reads", READS)
@torch.no_grad()
def test_rows_do_not_meet(reads, inputs, more):
    network, order = tiny({"reads": reads, "relative": reads == "attended"}, **EVERYTHING), torch.tensor([2, 0, 1])
    everything = {**inputs, **more, "hinted": torch.tensor([True, False, True]),
                  "read": torch.tensor([False, True, True])}
    said = network(**everything)
    turned = network(**{name: value[order] for name, value in everything.items()})
    torch.testing.assert_close(turned, said[order])


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("what", ["x_t", "hint", "label", "source", "signal"])
@torch.no_grad()
def test_everything_that_is_told_matters(what, reads, inputs, more):
    network = tiny({"reads": reads}, **EVERYTHING)
    told = {**inputs, **more}
    other = {**told, what: (told[what] + 1) % 3 if what == "label" else 1 - told[what] if what == "signal" else
             told[what].roll(1, 0)}
    changed = (network(**told) - network(**other)).abs().amax((1, 2))
    assert (changed[[0, 2] if what == "signal" else [0, 1, 2]] > 1e-3).all()       # at t = .5 both are the same
    if what == "signal":
        indexed = tiny({"reads": reads, "clock": "index"}, **EVERYTHING)
        assert torch.equal(indexed(**told), indexed(**other))
        assert not torch.allclose(indexed(**told), indexed(**{**told, "t": told["t"].roll(1, 0)}), atol=1e-3)


@pytest.mark.parametrize("reads", READS)
@torch.no_grad()
def test_what_is_masked_is_not_read(reads, inputs, more):
    network = tiny({"reads": reads, "relative": reads == "attended"}, **EVERYTHING)
    told = {**inputs, **more}
    said = network(**told)
    for name, mask in (("x_t", "mask"), ("hint", "mask"), ("source", "source_mask")):
        spoilt = {**told, name: told[name].masked_fill(~told[mask][..., None], 7.0)}
        assert not torch.equal(spoilt[name], told[name])
        torch.testing.assert_close(network(**spoilt)[told["mask"]], said[told["mask"]])
    assert not torch.allclose(network(**{**told, "x_t": told["x_t"] + 1})[told["mask"]], said[told["mask"]], atol=1e-3)


@pytest.mark.parametrize("reads", READS)
@torch.no_grad()
def test_a_row_without_a_condition_is_the_network_without_it(reads, inputs, more):
    """Row by row: no hint, the null class, a source that is not read."""
    network = tiny({"reads": reads}, **EVERYTHING)
    none = network(**inputs)
    some = torch.tensor([True, False, True])
    hinted = network(**inputs, hint=more["hint"])
    torch.testing.assert_close(network(**inputs, hint=more["hint"], hinted=some),
                               torch.where(some[:, None, None], hinted, none))
    read = network(**inputs, source=more["source"], source_mask=more["source_mask"])
    torch.testing.assert_close(
        network(**inputs, source=more["source"], source_mask=more["source_mask"], read=some),
        torch.where(some[:, None, None], read, none))
    labelled = network(**inputs, label=more["label"])
    torch.testing.assert_close(network(**inputs, label=torch.where(some, more["label"], 3)),
                               torch.where(some[:, None, None], labelled, none))
    for said in (hinted, read, labelled):
        assert ((said - none).abs().amax((1, 2)) > 1e-3).all()


@pytest.mark.parametrize("reads", READS)
def test_null_vectors_learn(reads, inputs, more):
    network = tiny({"reads": reads}, **EVERYTHING)
    some = torch.tensor([True, False, True])
    network(**inputs, **more, hinted=some, read=some).sum().backward()
    for nothing in (network.no_hint, network.no_source):
        assert nothing.grad is not None and nothing.grad.any()


@torch.no_grad()
def test_time_may_differ_by_place(inputs):
    network = tiny()
    per_place = {**inputs, "t": inputs["t"].expand(B, L), "signal": inputs["signal"].expand(B, L)}
    torch.testing.assert_close(network(**per_place), network(**inputs))


# ---------------------------------------------------------------- the perceiver


def perceiver(awake: bool = False, **changes: Any) -> PerceiverAutoencoder:
    torch.manual_seed(0)
    said = {"latents": 4, "width": 8, "layers": 2, "heads": 2, "deviation": 0.0 if awake else 0.02}
    return Perceiver(**{**said, **changes}).build(12, L).eval()


@pytest.mark.parametrize("norm", [True, False])
@torch.no_grad()
def test_latents_have_their_norm(norm):
    h = 5 * torch.randn(B, L, 12, generator=torch.Generator().manual_seed(0))
    network = perceiver(norm=norm)
    network.compress.last.weight.mul_(torch.arange(1.0, 9.0))
    Z = network.compress(h, torch.ones(B, L, dtype=torch.bool))
    assert Z.shape == (B, 4, 8)
    assert torch.allclose(Z.norm(dim=-1), torch.full((B, 4), 8 ** 0.5)) == norm
    torch.testing.assert_close(fixed_norm(torch.randn(3, 64)).norm(dim=-1), torch.full((3,), 8.0))


@torch.no_grad()
def test_places_that_are_no_text_do_not_change_the_latents_and_others_do(inputs):
    network = perceiver(awake=True)
    h = torch.randn(B, L, 12, generator=torch.Generator().manual_seed(0))
    mask = inputs["mask"]
    Z = network.compress(h, mask)
    assert torch.equal(network.compress(h.masked_fill(~mask[..., None], 9.0), mask), Z)
    short = network.compress(h[1:2, :3], mask[1:2, :3])                              # nor does padding
    torch.testing.assert_close(short, Z[1:2])
    for place in range(3):
        other = h.clone()
        other[:, place] *= -1
        assert ((network.compress(other, mask) - Z).abs().amax((1, 2)) > 1e-3).all()
    assert network.expand(Z).shape == (B, 4, 12)


def test_initial_weights_are_barts_or_pytorchs():
    def deviations(deviation: float) -> list[float]:
        network = Perceiver(latents=8, width=64, layers=1, heads=2, deviation=deviation).build(64, 64)
        return [float(module.weight.detach().std()) for module in network.modules()
                if isinstance(module, (nn.Linear, nn.Embedding))]

    assert all(deviation == pytest.approx(0.02, rel=0.15) for deviation in deviations(0.02))
    assert all(deviation > 0.03 for deviation in deviations(0.0))
