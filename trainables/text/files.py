"""The user's own texts, taken from files and known by their content.

    stories.txt                one text a line
    stories.jsonl              one object a line with a "text"; stories.jsonl:story takes another field
    devset.csv:ref             a named column
    devset.csv:ref:mr          ... and the column of what each text was written from, its source: conditional models
                               read it, and all texts of one source go to one split (so it may as well be an author)

Where a row has a field or column "source" or "class" besides, that is its source or class.

    import_files("devset.csv:ref:mr", "testset_w_refs.csv:ref:mr", store)  =>  Imported(name="devset", digest="...")

Importing parses the files, puts the rows into the store under the digest of what they say, and returns a config that
knows only that digest: no path enters a fingerprint, moving or renaming a folder changes nothing, and another machine
that shares the store needs no files.  The stage then deals the rows into splits:

    one file        train, judge, valid, test, by shares
    with a test     train and judge from the first file; valid and test are the two halves of the second
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import fsspec

from trainables.config import ConfigError, config, near
from trainables.stages import Context, Stage, Store
from trainables.text.rows import Row, deal, tidy, write_rows

FORM = re.compile(r"(?P<path>.+?\.(?P<kind>txt|jsonl|csv))(?::(?P<column>[^:]+))?(?::(?P<group>[^:]+))?", re.IGNORECASE)
FEWEST = 50                            # texts a file must hold: with less there is nothing to learn or to compare


@config
class Imported:
    """Rows that were imported from files; the shares say how they are dealt."""

    name: str                          # for people: the training file's stem
    digest: str                        # of everything the rows say
    judge: float = 0.15
    valid: float = 0.1                 # the shares of a corpus without a test file of its own
    test: float = 0.1
    seed: int = 0

    version: ClassVar[int] = 1

    def __post_init__(self):
        if min(self.judge, self.valid, self.test) <= 0 or self.judge + self.valid + self.test >= 1:
            raise ValueError("judge, valid and test must be positive shares that leave something to train on")

    def needs(self) -> tuple[Stage, ...]:
        return ()

    def make(self, out: Path, context: Context) -> None:
        content = fetch(context.store, self.digest)
        if content is None:
            raise ConfigError("digest", f"the texts of {self.name!r} ({self.digest}) are not in this store: "
                                        "name the files with --data once more")
        imported = json.loads(content)
        rows, groups = imported["rows"], imported["groups"]
        if "test_rows" in imported:
            shares = {"train": 1 - self.judge, "judge": self.judge}
            splits = deal(rows, groups, shares, self.seed)
            splits |= deal(imported["test_rows"], imported["test_groups"], {"valid": 0.5, "test": 0.5}, self.seed)
        else:
            shares = {"train": 1 - self.judge - self.valid - self.test,
                      "judge": self.judge, "valid": self.valid, "test": self.test}
            splits = deal(rows, groups, shares, self.seed)
        write_rows(out, splits)


def import_files(train: str, test: str | None, store: Store) -> Imported:
    """Parse the files, keep what they say in the store, and name it.  ConfigError for files that cannot be used."""
    content: dict[str, list] = {}
    content["rows"], content["groups"] = parse_file(train)
    if test is not None:
        content["test_rows"], content["test_groups"] = parse_file(test)
    canonical = json.dumps(content, ensure_ascii=False, sort_keys=True).encode()
    digest = hashlib.sha256(canonical).hexdigest()[:16]
    keep(store, digest, canonical)
    data = Imported(name=Path(_form(train)[0]).stem, digest=digest)
    try:
        Context(store).get(data)                           # that it can be dealt is known now, not on a worker
    except ConfigError as error:
        raise ConfigError(train, error.problem) from None
    return data


# ---------------------------------------------------------------- the store's shelf of imported content


def keep(store: Store, digest: str, content: bytes) -> None:
    """Put content on the shelf; a reader checks the digest, so a torn write is as good as none."""
    if fetch(store, digest) is None:
        files, path = _shelf(store, digest)
        files.makedirs(path.rpartition("/")[0], exist_ok=True)
        files.pipe_file(path, content)


def fetch(store: Store, digest: str) -> bytes | None:
    """The content of that digest, or None."""
    files, path = _shelf(store, digest)
    try:
        content = files.cat_file(path)
    except FileNotFoundError:
        return None
    return content if hashlib.sha256(content).hexdigest()[:16] == digest else None


def _shelf(store: Store, digest: str) -> tuple[Any, str]:
    return fsspec.core.url_to_fs(f"{store.url if store.remote else store.folder}/imports/{digest}.json")


# ---------------------------------------------------------------- reading files


def is_file_form(text: str) -> bool:
    """Whether this means a file: by its ending, or because there is one of that name."""
    return FORM.fullmatch(text) is not None or Path(text).is_file()


def _form(text: str) -> tuple[str, str, str | None, str | None]:
    """(path, kind, column, group); a file without an ending has lines."""
    if match := FORM.fullmatch(text):
        return match["path"], match["kind"].lower(), match["column"], match["group"]
    if Path(text).suffix:
        raise ConfigError(text, f"the file ends in {Path(text).suffix!r}; it must end in .txt, .jsonl or .csv")
    return text, "txt", None, None


def parse_file(text: str, fewest: int = FEWEST) -> tuple[list[Row], list[str]]:
    """The rows of a file form, and the group of each (the text itself where none was named)."""
    path, kind, column, group = _form(text)
    content = _read(path)
    if kind == "csv":
        records = _csv(path, content, column, group)
    elif kind == "jsonl":
        records = _jsonl(path, content, column or "text", group)
    elif column is None:
        records = [({"text": line}, line) for line in re.split(r"\r\n|\r|\n", content)]
    else:
        raise ConfigError(text, "a .txt file has one text a line and no columns")
    records = [(row | {"text": tidy(row["text"])}, where) for row, where in records if row["text"].strip()]
    if len(records) < fewest:
        raise ConfigError(text, f"too few texts: {len(records)}, and at least {fewest} are needed")
    return [row for row, _ in records], [where if group else row["text"] for row, where in records]


def _read(path: str) -> str:
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        beside = Path(path).parent
        names = [entry.name for entry in beside.iterdir()] if beside.is_dir() else []
        raise ConfigError(path, f"no such file{near(Path(path).name, names) if names else ''}") from None
    except OSError as error:
        raise ConfigError(path, f"cannot be read: {error.strerror}") from None
    if not content.strip():
        raise ConfigError(path, "the file is empty")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[:error.start].count(b"\n") + 1
        raise ConfigError(path, f"not UTF-8: byte 0x{content[error.start]:02x} in line {line}; "
                                "convert it, for example with iconv -t utf-8") from None


def _csv(path: str, content: str, column: str | None, group: str | None) -> list[tuple[Row, str]]:
    reader = csv.DictReader(io.StringIO(content, newline=""))
    columns = list(reader.fieldnames or [])
    if column is None:
        raise ConfigError(path, f"say which column holds the text: {path}:column, one of {', '.join(columns)}")
    for wanted in (column, group):
        if wanted is not None and wanted not in columns:
            raise ConfigError(path, f"no column {wanted!r}{near(wanted, columns)}")
    try:
        return [(_row(record, column, group), (record[group] or "") if group else "") for record in reader]
    except csv.Error as error:
        raise ConfigError(path, f"line {reader.line_num}: {error}") from None


def _jsonl(path: str, content: str, field: str, group: str | None) -> list[tuple[Row, str]]:
    records = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(path, f"line {number} is not JSON: {error.msg}") from None
        if not isinstance(record, dict):
            raise ConfigError(path, f"line {number} is not an object with a field {field!r}")
        for wanted in (field, group):
            if wanted is not None and wanted not in record:
                raise ConfigError(path, f"line {number} has no field {wanted!r}{near(wanted, record)}")
        if not isinstance(record[field], str):
            raise ConfigError(path, f"line {number}: field {field!r} must be a text, not {record[field]!r}")
        records.append((_row(record, field, group), str(record[group]) if group else ""))
        try:
            " ".join([*records[-1][0].values(), records[-1][1]]).encode()
        except UnicodeEncodeError:
            raise ConfigError(path, f"line {number} has half a character (a lone surrogate, \\ud83d or the like): "
                                    "mend it, or leave the line out") from None
    return records


def _row(record: Mapping[str, Any], column: str, group: str | None) -> Row:
    """A record's text, with its source and its class where it has them."""
    known = {"source": record.get("source", record[group] if group else None), "class": record.get("class")}
    return {name: tidy(str(value)) for name, value in known.items() if value not in (None, "")} | \
        {"text": record[column] or ""}
