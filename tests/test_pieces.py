"""Laws of SentencePiece: texts come back, a file is known by its content, what cannot serve is refused in one line."""

import io
import shutil
from pathlib import Path

import pytest
from sentencepiece import SentencePieceTrainer

from trainables.config import ConfigError, override
from trainables.scorelm import ScoreLm, scorelm_laptop
from trainables.stages import Context, Store, key
from trainables.text.corpora import Stories, read_texts
from trainables.text.pieces import ImportedPieces, PieceFile, PieceModel, Pieces, SentencePiece

DATA = Stories(size=300)


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    return Context(Store(tmp_path_factory.mktemp("store") / "stages"))


@pytest.fixture(scope="module")
def texts(context) -> list[str]:
    return read_texts(context.get(DATA), "train")


def trained(context: Context, tokenizer: SentencePiece) -> Pieces:
    return Pieces.load(context.get(PieceModel(data=DATA, tokenizer=tokenizer)))


@pytest.mark.parametrize("model", ["bpe", "unigram"])
@pytest.mark.parametrize("start", [True, False])
def test_texts_come_back(model, start, context, texts):
    pieces = trained(context, SentencePiece(model=model, vocabulary=300, coverage=1.0, start=start))
    rows = pieces.ids(texts, 64)
    assert pieces.texts(rows) == texts
    assert all((row[0] == pieces.start) is start and row[-1] == pieces.end for row in rows)
    assert all(0 <= i < pieces.vocabulary for row in rows for i in row)
    assert pieces.texts([[*row, pieces.pad, pieces.pad] for row in rows[:5]]) == texts[:5]
    assert pieces.texts([[*row, *rows[1]] for row in rows[:5]]) == texts[:5]        # what follows the end is nothing


def test_the_published_ids(context):
    pieces = trained(context, SentencePiece(vocabulary=300, coverage=1.0))
    assert (pieces.start, pieces.end, pieces.pad) == (0, 1, 2)


def test_with_room_every_word_is_a_piece_and_digits_stay_apart(context, texts):
    pieces = trained(context, SentencePiece(vocabulary=1_000, coverage=1.0))
    assert [len(row) - 2 for row in pieces.ids(texts, 64)] == [len(text.split()) for text in texts]
    digits = pieces.ids(["1234"], 64)[0]
    assert len(digits) >= 2 + 4 and pieces.texts([digits]) == ["1234"]


def test_long_texts_are_cut_and_still_end(context, texts):
    pieces = trained(context, SentencePiece(vocabulary=1_000, coverage=1.0))
    row, = pieces.ids(texts[:1], 6)
    assert len(row) == 6 and row[0] == pieces.start and row[-1] == pieces.end
    assert pieces.texts([row]) == [" ".join(texts[0].split()[:4])]
    assert pieces.ids(texts[:1], 6, start=False)[0][:5] == pieces.ids(texts[:1], 64)[0][1:6]


def test_training_twice_gives_one_model(texts):
    for model in ("bpe", "unigram"):
        tokenizer = SentencePiece(model=model, vocabulary=200, coverage=1.0)
        assert tokenizer.train(texts) == tokenizer.train(texts)


# ---------------------------------------------------------------- ready models


def settled(file: Path, store: Store) -> ImportedPieces:
    """What a trial that names this file comes to name."""
    trial = override(scorelm_laptop(DATA), {"system.tokenizer": PieceFile(name=str(file))}).settled(store)
    assert trial.settled(store) == trial and isinstance(trial.system, ScoreLm)
    assert isinstance(trial.system.tokenizer, ImportedPieces)
    return trial.system.tokenizer


def test_a_ready_model_is_known_by_its_content(context, texts, tmp_path):
    content = SentencePiece(vocabulary=300, coverage=1.0).train(texts)
    (tmp_path / "mine.model").write_bytes(content)
    shutil.copy(tmp_path / "mine.model", tmp_path / "moved.model")
    here, moved = (settled(tmp_path / name, context.store) for name in ("mine.model", "moved.model"))
    assert here.name == "mine.model" and moved.name == "moved.model" and here.digest == moved.digest
    stage = PieceModel(data=DATA, tokenizer=here)
    (tmp_path / "mine.model").unlink()                                              # the store has it now
    assert Pieces.load(context.get(stage)).ids(texts[:9], 20) == Pieces(content).ids(texts[:9], 20)
    other = SentencePiece(vocabulary=200, coverage=1.0).train(texts)
    (tmp_path / "mine.model").write_bytes(other)
    assert key(PieceModel(data=DATA, tokenizer=settled(tmp_path / "mine.model", context.store))) != key(stage)


def test_a_model_without_end_or_pad_gets_ids_of_its_own(texts, tmp_path):
    written = io.BytesIO()
    SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=written, model_type="bpe", vocab_size=200,
                               hard_vocab_limit=False, minloglevel=2, bos_id=-1, eos_id=-1, pad_id=-1, unk_id=0)
    pieces = Pieces(written.getvalue())
    assert pieces.start is None and {pieces.end, pieces.pad} == {pieces.vocabulary - 2, pieces.vocabulary - 1}
    rows = pieces.ids(texts, 64)
    assert pieces.texts(rows) == texts and all(row[-1] == pieces.end for row in rows)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("missing.model", None, "cannot be read: No such file"), ("words.model", b"the cat", "is no SentencePiece model"),
    ("empty.model", b"", "is no SentencePiece model")])
def test_files_that_are_no_model_are_refused_with_the_path(name, content, message, context, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    trial = override(scorelm_laptop(DATA), {"system.tokenizer": PieceFile(name=str(tmp_path / name))})
    with pytest.raises(ConfigError, match=message) as refused:
        trial.settled(context.store)
    assert refused.value.path == "system.tokenizer.name" and "\n" not in str(refused.value)


def test_what_was_not_imported_or_is_elsewhere_is_refused(context):
    with pytest.raises(ConfigError, match="nobody was asked"):
        context.get(PieceModel(data=DATA, tokenizer=PieceFile(name="some.model")))
    with pytest.raises(ConfigError, match="name its file again"):
        context.get(PieceModel(data=DATA, tokenizer=ImportedPieces(name="x", digest="0" * 16)))


def test_what_cannot_be_trained_is_refused(texts):
    with pytest.raises(ConfigError, match="cannot be trained") as refused:
        SentencePiece(vocabulary=12, coverage=1.0).train(texts)                     # fewer than there are characters
    assert "\n" not in str(refused.value)
    for wrong in ({"vocabulary": 7}, {"coverage": 0.5}, {"symbols": ("a b",)}, {"symbols": ("",)}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            override(SentencePiece(), wrong)
