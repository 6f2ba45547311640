"""Laws of TEncDM's networks: the published sizes, skips from the mirrored layer, and a source that is really read."""

import pytest
import torch
from torch import nn

from trainables.networks.transformer import Attention, Denoiser, Layer, Transformer, WordReader, sinusoid

TINY = Transformer(layers=4, width=16, heads=2, feedforward=32, positions=12, dropout=0.0)
B, L, S, D = 3, 6, 5, 16


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def tiny(reads_source: bool = False, features: int = D, **changes) -> Denoiser:
    torch.manual_seed(0)
    said = {"layers": 4, "width": 16, "heads": 2, "feedforward": 32, "positions": 12, "dropout": 0.0}
    return Transformer(**{**said, **changes}).build(features, reads_source).eval()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]).bool()
    return {"x_t": draw(B, L, D), "t": torch.tensor([[0.1], [0.5], [0.9]]), "guess": draw(B, L, D),
            "source": draw(B, S, D), "source_mask": mask}


def unconditional(inputs: dict) -> dict:
    return {name: inputs[name] for name in ("x_t", "t", "guess")}


def inlets(network: Denoiser) -> list[nn.Linear]:
    """Where time and guess enter the layers."""
    return [inlet for inlet in (*network.time_in, *network.guess_in) if isinstance(inlet, nn.Linear)]


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(("build", "count"), [
    (lambda: Transformer().build(768), 101_983_488),
    (lambda: Transformer().build(768, reads_source=True), 130_350_336),
    (lambda: WordReader(3, 768, 12, 3072, 0.1, 28_996), 43_561_540),
    (lambda: WordReader(3, 768, 12, 3072, 0.1, 28_996, reads_source=True), 50_653_252),
    (lambda: Layer(768, 12, 3072, 0.1), 7_087_872),
])
def test_parameter_counts_are_the_papers(build, count):
    with torch.device("meta"):
        assert parameters(build()) == count


@pytest.mark.parametrize(("changes", "words"), [
    ({"layers": 5}, "layers must be even"), ({"heads": 5}, "even multiple of heads"), ({"width": 0}, "at least 1"),
    ({"dropout": 1.0}, "dropout"), ({"time_scale": 0.0}, "time_scale")])
def test_sizes_that_cannot_be_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        Transformer(**changes)
    assert Transformer(layers=5, skips=False).layers == 5


# ---------------------------------------------------------------- time


def test_the_time_embedding_has_the_specs_numbers():
    e = sinusoid(torch.tensor([[0.5]]), 768)[0, 0]
    assert e.shape == (768,)
    expected = {0: 0.877583, 1: 0.883202, 383: 1.0, 384: 0.479426, 385: 0.468993}
    for place, value in expected.items():
        assert float(e[place]) == pytest.approx(value, abs=1e-6)


def test_every_position_may_have_its_own_time(inputs):
    network, known = tiny(), unconditional(inputs)
    together = network(**known)
    torch.testing.assert_close(network(**{**known, "t": known["t"].expand(B, L)}), together)
    other = known["t"].expand(B, L).clone()
    other[:, 2] = 0.3
    assert not torch.allclose(network(**{**known, "t": other}), together, atol=1e-4)


def test_time_scale_stretches_time(inputs):
    one, known = tiny(), unconditional(inputs)
    stretched = tiny(time_scale=10.0)
    stretched.load_state_dict(one.state_dict())
    torch.testing.assert_close(stretched(**{**known, "t": known["t"] / 10}), one(**known))


# ---------------------------------------------------------------- layers


class Shift(nn.Module):
    """A layer that adds 10^i to what it gets, and writes that down: sums then show who was added to whom."""

    def __init__(self, i: int):
        super().__init__()
        self.i, self.got = i, torch.empty(0)

    def forward(self, h, source, source_mask):
        self.got = h.detach()
        return h + 10.0 ** self.i


@pytest.mark.parametrize(("skips", "got", "told"), [
    #  layer  0  1       2         3
    (True, [0, 1, 11 + 1, 112 + 0], [0.5, 1.0, 1.0 + 0.5 + 0.5, 2.0 + 0 + 0.5]),
    (False, [0, 1, 11, 111], [0.5, 1.0, 1.5, 2.0]),
])
def test_skips_come_from_the_mirrored_layer(skips, got, told):
    """2 hears 1's input and 3 hears 0's, as it was before the time and the guess were added (spec 1.6)."""
    network = tiny(skips=skips)
    layers = [Shift(i) for i in range(4)]
    network.layers = nn.ModuleList(layers)
    nn.init.zeros_(network.position.weight)
    for inlet in inlets(network):
        nn.init.zeros_(inlet.weight)
        nn.init.zeros_(inlet.bias)
    nothing = torch.zeros(1, L, D), torch.zeros(1, 1), torch.zeros(1, L, D)
    output = network(*nothing)
    assert [layer.got.unique().tolist() for layer in layers] == [[value] for value in got]
    assert output.unique().tolist() == [got[3] + 1000]
    for inlet in inlets(network):
        nn.init.constant_(inlet.bias, 0.25)
    network(*nothing)
    assert [float(layer.got[0, 0, 0]) - value for layer, value in zip(layers, got, strict=True)] == told


def test_every_layer_hears_the_time_and_the_guess(inputs):
    network, known = tiny(), unconditional(inputs)
    before = network(**known)
    assert len(inlets(network)) == 8
    for inlet in inlets(network):
        kept = inlet.weight.clone()
        nn.init.zeros_(inlet.weight)
        assert not torch.allclose(network(**known), before, atol=1e-4)
        with torch.no_grad():
            inlet.weight.copy_(kept)
    assert not torch.allclose(network(**{**known, "guess": torch.zeros(B, L, D)}), before, atol=1e-4)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_norms_behind_or_in_front(norm, inputs):
    """Behind: the last LayerNorm is the output.  In front: a head, so that the output may have any size."""
    network, known = tiny(norm=norm), unconditional(inputs)
    output = network(**known)
    assert output.shape == (B, L, D) and output.isfinite().all()
    if norm == "post":
        assert isinstance(network.leave, nn.Identity)
        torch.testing.assert_close(output.mean(-1), torch.zeros(B, L), atol=1e-5, rtol=0)
        torch.testing.assert_close(output.std(-1, correction=0), torch.ones(B, L), atol=1e-4, rtol=0)
    else:
        assert isinstance(network.leave, nn.Linear)
        assert output.std(-1, correction=0).std() > 1e-3
    output.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_other_widths_are_projected(norm, inputs):
    network = tiny(reads_source=True, features=8, norm=norm)
    narrow = {**inputs, **{name: inputs[name][..., :8] for name in ("x_t", "guess", "source")}}
    assert network(**narrow).shape == (B, L, 8)


def test_attention_is_scaled_dot_product_over_heads(inputs):
    """By hand, head by head."""
    torch.manual_seed(0)
    attention = Attention(D, 2, 0.0).eval()
    x, memory, mask = inputs["x_t"], inputs["source"], inputs["source_mask"]
    q, (k, v) = attention.query(x), attention.key_value(memory).chunk(2, -1)
    heads = []
    for head in range(2):
        part = slice(8 * head, 8 * head + 8)
        scores = q[..., part] @ k[..., part].mT / 8 ** 0.5
        heads.append(scores.masked_fill(~mask[:, None, :], -torch.inf).softmax(-1) @ v[..., part])
    torch.testing.assert_close(attention(x, memory, mask), attention.output(torch.cat(heads, -1)))


def test_dropout_is_for_training_alone(inputs):
    network, known = tiny(dropout=0.5), unconditional(inputs)
    assert torch.equal(network(**known), network(**known))
    network.train()
    assert not torch.equal(network(**known), network(**known))


# ---------------------------------------------------------------- rows and sources


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_permuting_the_batch_permutes_the_output(norm, inputs):
    network, order = tiny(reads_source=True, norm=norm), torch.tensor([2, 0, 1])
    permuted = network(**{name: value[order] for name, value in inputs.items()})
    torch.testing.assert_close(permuted, network(**inputs)[order])


def test_positions_matter_to_the_denoiser_and_not_to_the_reader(inputs):
    order, known = torch.tensor([5, 3, 1, 0, 2, 4]), unconditional(inputs)
    network = tiny()
    permuted = network(known["x_t"][:, order], known["t"], known["guess"][:, order])
    assert not torch.allclose(permuted, network(**known)[:, order], atol=1e-3)
    torch.manual_seed(0)
    reader = WordReader(2, D, 2, 32, 0.1, 11).eval()
    logits = reader(known["x_t"])
    assert logits.shape == (B, L, 11)
    torch.testing.assert_close(reader(known["x_t"][:, order]), logits[:, order])


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_another_source_gives_another_output(norm, inputs):
    """T1 of the original: its networks silently had no cross-attention."""
    network = tiny(reads_source=True, norm=norm)
    output = network(**inputs)
    other = inputs["source"].clone()
    other[0, 0] = torch.randn(D, generator=torch.Generator().manual_seed(7))
    changed = network(**{**inputs, "source": other})
    assert ((changed - output).abs().amax((1, 2)) > 1e-3).tolist() == [True, False, False]
    for layer in network.layers:                                         # and every layer reads it
        assert isinstance(layer, Layer) and layer.cross is not None


def test_masked_positions_of_the_source_do_not_matter(inputs):
    network = tiny(reads_source=True)
    output = network(**inputs)
    hidden = torch.where(inputs["source_mask"][..., None], inputs["source"], 1e3)
    torch.testing.assert_close(network(**{**inputs, "source": hidden}), output)
    shown = network(**{**inputs, "source": hidden, "source_mask": torch.ones(B, S, dtype=torch.bool)})
    assert not torch.allclose(shown[1], output[1], atol=1e-3)
    longer = {"source": nn.functional.pad(inputs["source"], (0, 0, 0, 4)),
              "source_mask": nn.functional.pad(inputs["source_mask"], (0, 4))}
    torch.testing.assert_close(network(**{**inputs, **longer}), output)


def test_the_reader_reads_a_source_too(inputs):
    torch.manual_seed(0)
    reader = WordReader(2, D, 2, 32, 0.0, 11, reads_source=True).eval()
    logits = reader(inputs["x_t"], inputs["source"], inputs["source_mask"])
    assert not torch.allclose(reader(inputs["x_t"], inputs["source"] + 1, inputs["source_mask"]), logits, atol=1e-3)


def test_a_source_is_not_forgotten_in_silence(inputs):
    with pytest.raises(ValueError, match="reads a source, and the batch has none"):
        tiny(reads_source=True)(**unconditional(inputs))
