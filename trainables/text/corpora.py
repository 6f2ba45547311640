"""Corpora: where texts come from.  Every one is a stage whose folder holds four splits (see rows.py).

    Stories(size, seed)            the built-in grammar, with an exact oracle          stories.py
    Imported(name, digest)         the user's files, known by their content            files.py
    HubTexts(name, columns)        a data set of the Hugging Face hub, dealt into four splits
    RocStories()                   98,161 five-sentence stories as TEncDM splits them    arXiv 2402.19097, 6

    choose_data("stories", None, store)                             what a command line's --data says
    choose_data("devset.csv:ref:mr", "testset.csv:ref:mr", store)
    choose_data("ag_news:text::label", None, store)

One grammar for files and for the hub: NAME:text:source:class, columns by name, what a text does not have left empty.
"""

from pathlib import Path
from typing import Any, ClassVar

from trainables.config import ConfigError, config, near
from trainables.stages import Context, Stage, Store
from trainables.text.files import Imported, import_files, is_file_form
from trainables.text.rows import Row, class_of, deal, read_rows, read_texts, tidy, write_rows
from trainables.text.stories import Stories

__all__ = ["PARQUET", "Data", "HubTexts", "Imported", "RocStories", "Stories", "choose_data", "import_files",
           "read_rows", "read_texts"]

PARQUET = "refs/convert/parquet"        # the branch where the hub puts a data set's rows as files: <subset>/<split>/


@config
class HubTexts:
    """One split of a hub data set, dealt at random into ours; equal texts stay on one side.

    `columns` are joined by single blanks into the text, `source_columns` (none: unconditional) into the source;
    `class_column` ("": no classes) says whole numbers or texts, and where the data set names its numbers, the names.
    A data set that is a script is none any more (datasets 4); the hub keeps its rows in another branch: `revision`
    PARQUET.
    """

    name: str
    columns: tuple[str, ...] = ("text",)
    source_columns: tuple[str, ...] = ()
    class_column: str = ""
    subset: str = "default"
    split: str = "train"
    revision: str = "main"
    judge: float = 0.1
    valid: float = 0.05
    test: float = 0.05
    seed: int = 0

    version: ClassVar[int] = 1

    def __post_init__(self):
        if not self.columns:
            raise ValueError("columns must name at least one column")
        if min(self.judge, self.valid, self.test) <= 0 or self.judge + self.valid + self.test >= 1:
            raise ValueError("judge, valid and test must be positive shares that leave something to train on")

    def needs(self) -> tuple[Stage, ...]:
        return ()

    def make(self, out: Path, context: Context) -> None:
        table = load_hub(self.name, self.subset, self.split, self.revision)
        texts = join_columns(table, self.columns, self.name)
        sources = join_columns(table, self.source_columns, self.name) if self.source_columns else [""] * len(texts)
        classes = read_classes(table, self.class_column, self.name) if self.class_column else [""] * len(texts)
        rows: list[Row] = [{"text": text} | ({"source": source} if source else {}) | ({"class": said} if said else {})
                           for text, source, said in zip(texts, sources, classes, strict=True) if text]
        shares = {"train": 1 - self.judge - self.valid - self.test,
                  "judge": self.judge, "valid": self.valid, "test": self.test}
        write_rows(out, deal(rows, [row["text"] for row in rows], shares, self.seed))


@config
class RocStories:
    """ROCStories as TEncDM has it: a random 10,000 stories (seed 0) are held out, the rest (88,161) is for training.

    The paper has neither a validation nor a judge's split; both are cut from the 10,000, so that training sees exactly
    the paper's stories.  What remains of the 10,000 is the test split.
    """

    name: str = "wza/roc_stories"
    held_out: int = 10_000
    valid: int = 2_000
    judge: int = 4_000
    seed: int = 0

    version: ClassVar[int] = 1

    def __post_init__(self):
        if self.valid <= 0 or self.judge <= 0 or self.valid + self.judge >= self.held_out:
            raise ValueError("valid and judge must be positive and leave a test split of the held-out stories")

    def needs(self) -> tuple[Stage, ...]:
        return ()

    def make(self, out: Path, context: Context) -> None:
        table = load_hub(self.name, "default", "train", "main")
        if len(table) <= self.held_out:
            raise ConfigError("held_out", f"{self.name} has {len(table):,} stories; {self.held_out:,} cannot be "
                                          "held out")
        parts = table.train_test_split(test_size=self.held_out, seed=self.seed)
        sentences = tuple(sorted(name for name in table.column_names if name.startswith("sentence")))
        if len(sentences) != 5:
            raise ConfigError("name", f"{self.name} should have five sentence columns, not {sentences}")
        held_out = [{"text": text} for text in join_columns(parts["test"], sentences, self.name)]
        write_rows(out, {
            "train": [{"text": text} for text in join_columns(parts["train"], sentences, self.name)],
            "valid": held_out[:self.valid],
            "judge": held_out[self.valid:self.valid + self.judge],
            "test": held_out[self.valid + self.judge:],
        })


Data = Stories | Imported | HubTexts | RocStories


def load_hub(name: str, subset: str, split: str, revision: str) -> Any:
    """A split of a hub data set, or of a local folder of data files.  ConfigError when it cannot be had."""
    import datasets  # half a second, and only here

    try:
        return datasets.load_dataset(name, None if subset == "default" else subset, split=split, revision=revision)
    except Exception as error:                             # the library raises many kinds: its words, in one line
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ConfigError("name", f"cannot load the data set {name!r}: {reason}") from error


def join_columns(table: Any, columns: tuple[str, ...], name: str) -> list[str]:
    """The columns of every row, joined by single blanks."""
    for column in columns:
        if column not in table.column_names:
            raise ConfigError("columns", f"{name} has no column {column!r}{near(column, table.column_names)}")
    cells = zip(*(table[column] for column in columns), strict=True)
    return [tidy(" ".join(str(cell) for cell in row if cell is not None)) for row in cells]


def read_classes(table: Any, column: str, name: str) -> list[str]:
    """Every row's class: its name where the data set has names for its numbers.   ConfigError: a row has none"""
    if column not in table.column_names:
        raise ConfigError("class_column", f"{name} has no column {column!r}{near(column, table.column_names)}")
    names = getattr(table.features[column], "names", None)               # of a ClassLabel; -1 stands for none
    found = []
    for number, value in enumerate(table[column]):
        if names is not None and value is not None:
            value = names[value] if value >= 0 else None
        try:
            found.append(class_of(value, column))
        except ValueError as error:
            raise ConfigError("class_column", f"{name}, row {number}: {error}") from None
    return found


BUILT_IN = {"stories": Stories, "rocstories": RocStories}


def choose_data(text: str, test: str | None, store: Store) -> Data:
    """What `--data` says: a built-in name, a file form (see files.py), or `hub-name:text:source:class`, of which source
    and class may be left out or empty, and text and source may be several columns, title+body.

    ConfigError, in one line, for a name that is nothing and for files that cannot be used.
    """
    if text.lower() in BUILT_IN and not Path(text).exists():
        if test is not None:
            raise ConfigError("--data", f"{text} has its own test split; a test file goes with a file")
        return BUILT_IN[text.lower()]()
    if is_file_form(text):
        return import_files(text, test, store)
    if test is not None:
        raise ConfigError("--data", "a test file goes with a training file")
    name, *columns = text.split(":")
    if name and 1 <= len(columns) <= 3 and columns[0]:
        said, source, label = (*columns, "", "")[:3]
        return HubTexts(name=name, columns=tuple(said.split("+")), class_column=label,
                        source_columns=tuple(source.split("+")) if source else ())
    raise ConfigError("--data", f"{text!r} is no file and no built-in corpus{near(text, BUILT_IN)}; a hub data set is "
                                "written name:text, name:text:source or name:text:source:class (name:text::class "
                                "without a source), by its columns' names")
