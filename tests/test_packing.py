"""Laws of packing: every document once, whole, apart; how full rows are; and of the prompts inside them."""

import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.networks.score_transformer import neighbours, places
from trainables.randomness import step_rng
from trainables.stages import Context, Store
from trainables.text.corpora import Stories, read_texts
from trainables.text.documents import Documents, PackedRows, SingleDocuments
from trainables.text.packing import (
    Packed,
    Packing,
    bucketed_efficiency,
    first_fit_decreasing,
    packed_efficiency,
    padded_efficiency,
)
from trainables.text.pieces import Pieces, SentencePiece
from trainables.text.prompts import NoPrompts, Prefixes, Prompts, Spans

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import packing as benchmark  # noqa: E402

PAD = 99
PACKINGS: list[Packing] = [member() for member in typing.get_args(Packing)]      # every kind, as it comes
PROMPTS: list[Prompts] = [member() for member in typing.get_args(Prompts)]
LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=60)


def documents(lengths: list[int], sources: list[int] | None = None) -> Documents:
    """Documents of which every token has an id of its own (sources, where there are any, from 1,000,000 on)."""
    first = np.cumsum([0, *lengths])
    targets = [list(range(100 + first[i], 100 + first[i] + n)) for i, n in enumerate(lengths)]
    if sources is None:
        return Documents.of(targets)
    return Documents.of(targets, [[1_000_000 + 100 * i + k for k in range(n)] for i, n in enumerate(sources)])


# ---------------------------------------------------------------- which documents share a row


def test_first_fit_decreasing_reference():
    assert first_fit_decreasing((60, 10, 20, 30, 5, 55, 34), 60) == [[0], [5, 4], [6, 2], [3, 1]]


@given(lengths=LENGTHS)
@settings(max_examples=60, deadline=None)
def test_it_is_the_first_row_with_room(lengths):
    """Against first fit as it is said, row by row."""
    rows: list[list[int]] = []
    for document in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((row for row in rows if sum(lengths[i] for i in row) + lengths[document] <= 20), None)
        if row is None:
            rows.append(row := [])
        row.append(document)
    assert first_fit_decreasing(lengths, 20) == rows


@pytest.mark.parametrize("packing", [*PACKINGS, Packed(capacity=20), Packed(capacity=33, seed=5)])
@given(lengths=LENGTHS)
@settings(max_examples=30, deadline=None)
def test_every_document_is_in_one_row_which_has_room_for_it(packing, lengths):
    rows = packing.rows(lengths)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert max(sum(lengths[i] for i in row) for row in rows) <= packing.slots(20)
    assert rows == packing.rows(lengths)


def test_documents_that_fit_nowhere_are_refused():
    with pytest.raises(ValueError, match=r"1\.\.20 tokens"):
        first_fit_decreasing([3, 21], 20)
    with pytest.raises(ValueError, match="capacity"):
        Packed(capacity=3)


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("packing", [*PACKINGS, Packed(capacity=12), Packed(capacity=40)])
@pytest.mark.parametrize("sources", [None, [2, 0, 3, 1, 4, 2, 1]])
def test_rows_hold_the_documents_whole_and_say_whose_a_token_is(packing, sources):
    lengths = [3, 8, 8, 1, 5, 2, 3]
    made = documents(lengths, sources)
    rows = PackedRows(made, packing, 12, PAD)
    batch = rows.take(torch.arange(len(rows)))
    assert batch.segment is not None and batch.given is not None
    assert batch.ids.shape == batch.segment.shape == (len(rows), packing.slots(12))
    found = []
    for row in range(len(rows)):
        real, segment = batch.mask[row], batch.segment[row]
        assert segment[real].unique().tolist() == list(range(rows.counts[row]))       # numbered without gaps
        assert bool((segment[real].diff() >= 0).all())                                # and in one piece each
        for number in range(rows.counts[row]):
            mine = real & (segment == number)
            found.append((batch.ids[row][mine].tolist(), int(batch.given[row][mine].sum())))
            assert bool((batch.ids[row][mine & batch.given[row]] >= 1_000_000).all())
    ends = made.lengths.cumsum()
    expected = [(made.ids[end - n:end].tolist(), int(s))
                for end, n, s in zip(ends, made.lengths, made.sources, strict=True)]
    assert sorted(found) == sorted(expected)
    assert bool((batch.ids[~batch.mask] == PAD).all()) and not batch.given[~batch.mask].any()
    assert rows.efficiency == pytest.approx(packed_efficiency(made.lengths.tolist(), packing, 12))


def test_rows_are_taken_by_number_in_any_order():
    rows = PackedRows(documents([3, 8, 8, 1, 5, 2, 3]), Packed(capacity=12), 12, PAD)
    whole, some = rows.take(torch.arange(len(rows))), rows.take(torch.tensor([2, 0]))
    assert torch.equal(some.ids, whole.ids[[2, 0]]) and torch.equal(some.mask, whole.mask[[2, 0]])


def test_single_documents_are_the_same_documents_apart_from_their_sources():
    made = documents([3, 8, 1], [2, 0, 4])
    batch = SingleDocuments(made, 9, 5, PAD).take(torch.tensor([2, 0, 1]))
    assert batch.source is not None and batch.ids.shape == (3, 9) and batch.source.ids.shape == (3, 5)
    assert batch.mask.sum(1).tolist() == [1, 3, 8] and batch.source.mask.sum(1).tolist() == [4, 2, 0]
    assert batch.ids[1, :4].tolist() == [100, 101, 102, PAD]
    assert batch.source.ids[1].tolist() == [1_000_000, 1_000_001, PAD, PAD, PAD]
    assert SingleDocuments(documents([3, 8]), 9, 0, PAD).take(torch.tensor([1])).source is None


def test_lengthened_documents_end_in_pads_that_count():
    made = documents([3, 5], [2, 1]).lengthened(np.array([6, 5]), PAD)
    assert made.targets.tolist() == [6, 5] and made.lengths.tolist() == [8, 6]
    assert made.target_ids().tolist() == [100, 101, 102, PAD, PAD, PAD, 103, 104, 105, 106, 107]


def test_documents_are_kept_and_found(tmp_path):
    made = documents([3, 5], [2, 1])
    made.save(tmp_path, "train")
    found = Documents.load(tmp_path, "train")
    assert np.array_equal(found.ids, made.ids) and np.array_equal(found.sources, made.sources)
    with pytest.raises(ValueError, match="'test'"):
        Documents.load(tmp_path, "test")


# ---------------------------------------------------------------- how full


@given(lengths=LENGTHS, batch=st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_buckets_waste_no_more_than_padding_to_the_longest(lengths, batch):
    assert padded_efficiency(lengths) <= bucketed_efficiency(lengths, batch) + 1e-12 <= 1 + 2e-12
    assert bucketed_efficiency(lengths, 1) == pytest.approx(1)


def test_packing_fills_rows_of_the_built_in_corpus(tmp_path):
    """Stories with BPE: one word a token, start and end.   The full size, and other texts: benchmarks/packing.py"""
    texts = read_texts(Context(Store(tmp_path)).get(Stories(size=2_000)), "train")
    pieces = Pieces(SentencePiece(vocabulary=1_000, coverage=1.0).train(texts))
    lengths = [len(row) for row in pieces.ids(texts, 64)]
    packed = packed_efficiency(lengths, Packed(capacity=60))
    assert packed > 0.94 and packed > padded_efficiency(lengths) and packed > 5 * padded_efficiency(lengths, 64)


def test_the_benchmark_says_what_rows_have(tmp_path, capsys):
    """Seven texts of 5 tokens and three of 10, packed in 10 slots; and a table of a file."""
    (tmp_path / "texts.txt").write_text("\n".join(f"a{'bcdefghij'[i % 9]} b c" for i in range(60)))
    found = benchmark.efficiencies([5] * 7 + [10] * 3, capacity=10, length=20, batch=4)
    assert found == pytest.approx({"documents": 10, "padded": 65 / 200, "padded_to_longest": 0.65, "bucketed": 65 / 80,
                                   "packed": 65 / 70, "per_row": 650 / 70})
    benchmark.main(["--data", str(tmp_path / "texts.txt"), "--length", "16", "--vocabulary", "30"])
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 3 and "texts.txt" in table[2]


# ---------------------------------------------------------------- prompts in rows


SEGMENTS = torch.tensor([[0] * 6 + [1] * 4 + [2] * 1 + [0] * 3] * 4_000)
REAL = torch.tensor([[True] * 11 + [False] * 3] * 4_000)


def drawn(prompts, part: int = 0, parts: int = 1) -> torch.Tensor:
    segment, real = SEGMENTS[part::parts], REAL[part::parts]
    together = neighbours(torch.where(real, segment, -1))
    return prompts.draw(places(together), together.sum(-1), segment, step_rng(0, 0, part=part, parts=parts)) & real


def test_nothing_is_given_without_prompts():
    assert not drawn(NoPrompts()).any() and NoPrompts().share() == 0


@pytest.mark.parametrize("prompts", [*PROMPTS, Spans(scattered=0.0), Spans(prompted=0.4, scattered=1.0),
                                     Prefixes(prompted=1.0, scattered=0.0)])
def test_each_document_has_its_own_prompt_and_never_all_of_it(prompts):
    given = drawn(prompts)
    counts = torch.stack([given[:, :6].sum(1), given[:, 6:10].sum(1), given[:, 10:11].sum(1)], 1).float()
    for document, n in enumerate((6, 4, 1)):
        most = n - 1 if prompts.share() else 0
        assert counts[:, document].max() == most                          # one token at least remains to be guessed
        expected = prompts.share() * (n - 1) / 2                          # U{0..n-1}, as ScoreLmSystem.typical has it
        assert float(counts[:, document].mean()) == pytest.approx(expected, abs=0.08)
    if prompts.share():                                                   # a prompt or none is each document's own
        assert abs(float(torch.corrcoef(counts[:, :2].T)[0, 1])) < 0.06


@pytest.mark.parametrize("prompts", [Spans(scattered=0.0), Prefixes(prompted=1.0, scattered=0.0)])
def test_prompts_that_are_not_scattered_are_in_one_piece(prompts):
    given = drawn(prompts)[:, :6].int()
    starts = (given.diff(dim=1, prepend=torch.zeros(len(given), 1, dtype=torch.int)) == 1).sum(1)
    assert starts.max() == 1
    if isinstance(prompts, Prefixes):
        assert bool((given[:, 0] == (given.sum(1) > 0)).all())
    else:
        assert bool(given.any(0).all()) and len(given[:, 0].unique()) == 2                # anywhere


def test_scattered_prompts_are_equally_often_everywhere():
    given = drawn(Spans(scattered=1.0))
    torch.testing.assert_close(given[:, :6].float().mean(0), torch.full((6,), 5 / 12), atol=0.04, rtol=0)
    assert float((given[:, :6].int().diff(dim=1) == 1).sum(1).max()) > 1                   # not in one piece


@pytest.mark.parametrize("prompts", PROMPTS)
def test_prompts_do_not_depend_on_how_rows_are_dealt(prompts):
    whole = drawn(prompts)
    for part in range(2):
        assert torch.equal(drawn(prompts, part, 2), whole[part::2])


def test_shares_are_shares():
    with pytest.raises(ValueError, match="scattered"):
        Spans(scattered=1.2)
    with pytest.raises(ValueError, match="prompted"):
        Prefixes(prompted=-0.1)
