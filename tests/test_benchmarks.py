"""What the benchmarks compare with computes what it stands for; what they count is what is computed."""

import sys
from pathlib import Path

import pytest
import torch
from published import TOY, texts
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import oracle  # noqa: E402
from reference import diffusionbert, tencdm  # noqa: E402
from reference.attention import EagerAttention  # noqa: E402
from reference.loop import Clock, Loop  # noqa: E402

from trainables.diffusion.absorbing import Absorbing, mixture_term  # noqa: E402
from trainables.networks.transformer import Attention, Transformer  # noqa: E402
from trainables.randomness import step_rng  # noqa: E402

CPU = torch.device("cpu")


@pytest.mark.parametrize("t", [1, 300, 1_024, 2_048])
def test_the_reference_over_all_words_is_our_term_at_the_hidden_ones(t):
    """DiffusionBERT's posterior algebra [B, L, V] against the closed form; and visible places cost nothing."""
    rng, V, mask, process = torch.Generator().manual_seed(0), 11, 10, Absorbing()
    ids = torch.randint(mask, (3, 7), generator=rng)
    x_t = torch.where(torch.rand(ids.shape, generator=rng) < 0.5, mask, ids)
    log_p = torch.randn(3, 7, V, generator=rng, dtype=torch.float64).log_softmax(-1)
    found = diffusionbert.divergence_of(log_p.exp(), ids, x_t, mask, t)
    late, early = (torch.full((1, 1), step / diffusionbert.STEPS, dtype=torch.float64) for step in (t, t - 1))
    hidden = x_t == mask
    expected = mixture_term(log_p[hidden], ids[hidden], mask, process.keep(early)[0],
                            process.base_reveal(late, early)[0])
    torch.testing.assert_close(found[hidden], expected, atol=1e-9, rtol=1e-5)
    torch.testing.assert_close(found[~hidden], torch.zeros_like(found[~hidden]))


def test_eager_attention_is_attention():
    torch.manual_seed(0)
    eager, ours = EagerAttention(32, 4, 0.0), Attention(32, 4, 0.0)
    ours.query, ours.output = eager.query, eager.output
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(ours.key_value, name).copy_(torch.cat([getattr(eager.key, name), getattr(eager.value, name)]))
    x, mask = torch.randn(2, 5, 32), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    torch.testing.assert_close(eager(x, mask), ours(x, None, mask), atol=1e-6, rtol=1e-5)


def test_the_loop_ends_where_the_same_optimizer_does():
    """Slow is all it is: clip, AdamW and average come out as they should."""
    torch.manual_seed(0)
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    mean = [p.detach().clone() for p in twin.parameters()]
    loop, optimizer = Loop(model, model, Clock(CPU), lr=1e-2), torch.optim.AdamW(twin.parameters(), lr=1e-2)
    for _ in range(3):
        x = torch.randn(4, 3)
        loop.step(lambda x=x: model(x).square().sum())
        optimizer.zero_grad()
        twin(x).square().sum().backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        mean = [old + 1e-4 * (p.detach() - old) for old, p in zip(mean, twin.parameters(), strict=True)]
    for weight, other in zip([*model.parameters(), *loop.means[0]], [*twin.parameters(), *mean], strict=True):
        torch.testing.assert_close(weight, other)


def products(run: nn.Module, *inputs: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        run(*inputs)
    return counter.get_total_flops()


def test_counted_products_are_the_formulas_and_both_sides_have_the_same():
    """Per token 24 H^2 + 4 L H a layer, and 2 H^2 for the last guess; the time's products are a text's, not a token's.

    Torch does not count what a CPU's fused attention multiplies, 4 L H, so there it is left out of ours.
    """
    B, L, H, layers = 2, 16, 32, 4
    x, guess, t = torch.randn(B, L, H), torch.randn(B, L, H), torch.rand(B)
    reference = tencdm.Denoiser(layers, H, 4, 4 * H)
    ours = Transformer(layers=layers, width=H, heads=4, feedforward=4 * H, positions=512).build(H)
    for_time = B * (4 * H * H * 2 + 2 * H * H * layers)
    formula = B * L * layers * (26 * H * H + 4 * L * H)
    assert products(reference, x, t, guess, torch.ones(B, L, dtype=torch.bool)) - for_time == formula
    counted = products(ours, x, t[:, None], guess) - for_time
    assert counted in (formula, formula - B * L * layers * 4 * L * H)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in reference.parameters())


def test_made_up_texts_are_different_and_of_the_lengths_asked_for(tmp_path):
    lines = texts(tmp_path / "texts.txt", TOY).read_text().splitlines()
    assert len(set(lines)) == len(lines) == TOY.texts
    assert {len(line.split()) for line in lines} == set(range(TOY.words[0], TOY.words[1] + 1))


def test_the_oracle_knows_the_words_and_no_more_than_can_be_known():
    """Next to clean text it is certain and right; of noise it says how common words are; between, it is calibrated."""
    chain = oracle.Chain()
    words = chain.write(400, torch.Generator().manual_seed(0))
    assert oracle.judged(chain, words)[0] == 0
    x0, rng = chain.vectors[words], step_rng(0, 0)

    def said(time: float) -> Tensor:
        t = torch.full((400, 1), time)
        return chain.marginals(chain.process.corrupt(x0, t, rng)[0], t)

    assert (said(1e-4).argmax(-1) == words).all()
    torch.testing.assert_close(said(1.0), chain.first.expand(400, oracle.LENGTH, -1), atol=1e-6, rtol=0)
    p = said(0.1)
    right = p.gather(-1, words[..., None]).squeeze(-1).mean()             # what it gave the truth, and gives itself
    assert 0.2 < float(right) < 0.9 and float(right) == pytest.approx(float(p.square().sum(-1).mean()), abs=0.02)
