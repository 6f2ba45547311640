"""SentencePiece: texts to pieces and back, by a model that is trained here or brought along.

    SentencePiece(model="bpe", vocabulary=8_000)     trained on the corpus
    PieceFile(name="my/spm.model")                   any ready .model; `imported_pieces` puts its content into the store
    ImportedPieces(name, digest)                     ... and this in its place, before any key is known

    corpus --PieceModel(data, tokenizer)--> pieces.model --Pieces.load(folder)--> ids [n] <-> texts

Of a ready model only start, end and pad may be missing: no start piece is then used, and a missing end or pad is one
more id past the model's own.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import fsspec
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from trainables.config import ConfigError, config, fields, is_config, join, override
from trainables.stages import Context, Stage, Store
from trainables.text.corpora import Data, read_rows

MODEL = "pieces.model"
LONGEST = 1 << 16                     # bytes of a training text; SentencePiece leaves out longer ones

C = TypeVar("C")


@config
class SentencePiece:
    """A model trained on the corpus (and on its sources, where they are read)."""

    model: Literal["bpe", "unigram"] = "bpe"
    vocabulary: int = 32_000                                # pieces, at most: a small corpus has fewer
    symbols: tuple[str, ...] = tuple("0123456789")          # pieces of their own whatever stands beside them
    coverage: float = 0.9995                                # share of the corpus' characters that are no unknown
    normalization: Literal["nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity"] = "nmt_nfkc"
    byte_fallback: bool = False                             # spell unknown characters in bytes
    start: bool = True                                      # whether there is a piece that every document starts with

    def __post_init__(self):
        if self.vocabulary < 8:
            raise ValueError(f"vocabulary must be at least 8 pieces, not {self.vocabulary}")
        if not 0.9 <= self.coverage <= 1:
            raise ValueError(f"coverage is a share of characters in [0.9, 1], not {self.coverage}")
        if any(not symbol or symbol != "".join(symbol.split()) for symbol in self.symbols):
            raise ValueError("symbols are texts without blanks")

    def train(self, texts: Sequence[str]) -> bytes:
        """The trained model.   ConfigError, in SentencePiece's words, where it cannot be trained"""
        written = io.BytesIO()
        ids: dict[str, Any] = {"bos_id": 0, "eos_id": 1, "pad_id": 2, "unk_id": 3} if self.start else \
            {"bos_id": -1, "eos_id": 0, "pad_id": 1, "unk_id": 2}
        try:
            SentencePieceTrainer.train(
                sentence_iterator=iter(texts), model_writer=written, model_type=self.model, vocab_size=self.vocabulary,
                hard_vocab_limit=False, user_defined_symbols=list(self.symbols), character_coverage=self.coverage,
                normalization_rule_name=self.normalization, byte_fallback=self.byte_fallback,
                max_sentence_length=LONGEST, num_threads=1, minloglevel=2, **ids)
        except Exception as error:                         # RuntimeError and others, several lines of C++
            raise ConfigError("tokenizer", f"SentencePiece cannot be trained: {reason(error)}") from error
        return written.getvalue()


@config
class PieceFile:
    """A ready SentencePiece .model on this machine, until `imported_pieces` has put its content in its place."""

    name: str


@config
class ImportedPieces:
    """A ready model that `imported_pieces` has put into the store."""

    name: str                             # for people: what the file was called
    digest: str                           # of its content


PieceTokenizer = SentencePiece | PieceFile | ImportedPieces


@config
class PieceModel:
    """pieces.model: the SentencePiece model."""

    data: Data
    tokenizer: PieceTokenizer
    reads_source: bool = False

    version: ClassVar[int] = 1

    def needs(self) -> tuple[Stage, ...]:
        return (self.data,) if isinstance(self.tokenizer, SentencePiece) else ()

    def make(self, out: Path, context: Context) -> None:
        if isinstance(self.tokenizer, SentencePiece):
            rows = read_rows(context.get(self.data), "train")
            texts = [row["text"] for row in rows]
            if self.reads_source:
                if not all("source" in row for row in rows):
                    raise ConfigError("source_length", "the texts of train have no sources to read")
                texts += list(dict.fromkeys(row["source"] for row in rows))
            content = self.tokenizer.train(texts)
        elif isinstance(self.tokenizer, ImportedPieces):
            content = kept_model(self.tokenizer.digest, context.store)
        else:
            raise ConfigError("tokenizer.name", f"{self.tokenizer.name} is a file, and nobody was asked to import it")
        (out / MODEL).write_bytes(content)


class Pieces:
    """Texts to ids and back.   `vocabulary` ids; `start` is None where documents have no start piece"""

    def __init__(self, content: bytes):
        """ValueError: no SentencePiece model"""
        self._model = SentencePieceProcessor()
        try:
            known = bool(content) and self._model.LoadFromSerializedProto(content)
        except Exception as error:
            raise ValueError(reason(error)) from error
        if not known or self._model.get_piece_size() == 0:
            raise ValueError("it has no pieces")
        self.vocabulary = self._model.get_piece_size()
        start = self._model.bos_id()
        self.start = start if start >= 0 else None
        self.end, self.pad = (given if given >= 0 else self._further()
                              for given in (self._model.eos_id(), self._model.pad_id()))
        self.special = {self.end, self.pad} | ({self.start} if self.start is not None else set())

    @classmethod
    def load(cls, folder: Path) -> "Pieces":
        """From a folder with a pieces.model."""
        return cls((folder / MODEL).read_bytes())

    def _further(self) -> int:
        self.vocabulary += 1
        return self.vocabulary - 1

    def ids(self, texts: Sequence[str], length: int, start: bool = True) -> list[list[int]]:
        """Start piece (if there is one, and it is wanted), pieces, end piece; texts are cut so that this is at most
        `length` ids."""
        before = [self.start] if start and self.start is not None else []
        room = length - len(before) - 1
        return [[*before, *pieces[:room], self.end] for pieces in self._model.encode(list(texts))]

    def texts(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """What stands before the first end piece of each row, without special pieces."""
        cut = [row[:row.index(self.end)] if self.end in row else row for row in map(list, rows)]
        return [self._model.decode([i for i in row if i not in self.special]) for row in cut]


def reason(error: Exception) -> str:
    """The last line that says something of a C++ error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


# ---------------------------------------------------------------- files that the user names


def imported_pieces(cfg: C, store: Store) -> C:
    """`cfg` with the content of every .model file that it names in the store, and its digest in the name's place.

    ConfigError, with the dotted path, for files that are no SentencePiece model.
    """
    changes = {}
    for path, file in _files(cfg):
        where = join(path, "name")
        try:
            content = Path(file.name).expanduser().read_bytes()
        except OSError as error:
            raise ConfigError(where, f"{file.name} cannot be read: {error.strerror}") from None
        try:
            Pieces(content)
        except ValueError as error:
            raise ConfigError(where, f"{file.name} is no SentencePiece model: {error}") from None
        changes[path] = ImportedPieces(name=Path(file.name).name, digest=keep_model(content, store))
    return override(cfg, changes)


def _files(cfg: Any, path: str = "") -> Iterator[tuple[str, PieceFile]]:
    """Every PieceFile inside a config, with its dotted path."""
    if isinstance(cfg, PieceFile):
        yield path, cfg
    elif is_config(cfg):
        for name in fields(type(cfg)):
            yield from _files(getattr(cfg, name), join(path, name))


def keep_model(content: bytes, store: Store) -> str:
    """Put the model on the store's shelf, unless it is there.   => its digest"""
    digest = hashlib.sha256(content).hexdigest()[:16]
    files, path = _shelf(store, digest)
    if not files.exists(path) or files.cat_file(path) != content:            # a torn write is as good as none
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        files.pipe_file(path, content)
    return digest


def kept_model(digest: str, store: Store) -> bytes:
    """What `keep_model` put there.   ConfigError: not in this store"""
    files, path = _shelf(store, digest)
    try:
        content = files.cat_file(path)
    except FileNotFoundError:
        content = b""
    if hashlib.sha256(content).hexdigest()[:16] != digest:
        raise ConfigError("tokenizer.digest", f"no SentencePiece model {digest} in this store: name its file again")
    return content


def _shelf(store: Store, digest: str) -> tuple[Any, str]:
    return fsspec.core.url_to_fs(f"{store.url if store.remote else store.folder}/imports/{digest}.model")
