"""Corpora: what goes in comes out in four splits, groups stay together, and bad files say what is wrong."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from trainables.config import ConfigError, fingerprint, from_dict, to_dict
from trainables.diffusionbert import diffusionbert
from trainables.stages import Context, Store
from trainables.text.corpora import (
    PARQUET,
    Data,
    HubTexts,
    Imported,
    RocStories,
    Stories,
    choose_data,
    import_files,
    read_rows,
    read_texts,
)
from trainables.text.files import parse_file
from trainables.text.rows import SPLITS, deal


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def csv_file(path: Path, rows: int = 200, groups: int = 40, word: str = "dog") -> Path:
    lines = [f'"who[{row % groups}], what[{word}]","{word} {row} said ""hello"", and left."' for row in range(rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mr,ref\n" + "\n".join(lines) + "\n")
    return path


def texts_of(data: Data, store: Store) -> dict[str, list[str]]:
    return {split: read_texts(Context(store).get(data), split) for split in SPLITS}


# ---------------------------------------------------------------- splits


def test_deal_keeps_groups_together_and_rows_complete():
    rows = [{"text": str(row)} for row in range(1000)]
    groups = [str(row % 100) for row in range(1000)]
    splits = deal(rows, groups, {"train": 0.7, "judge": 0.2, "valid": 0.1}, seed=0)
    where = {row["text"]: split for split, dealt in splits.items() for row in dealt}
    assert len(where) == 1000 == sum(map(len, splits.values()))
    assert all(where[str(row)] == where[str(row + 100)] for row in range(900))
    assert [len(splits[name]) for name in ("train", "judge", "valid")] == [700, 200, 100]


def test_deal_does_not_depend_on_the_order_of_rows():
    rows = [{"text": str(row)} for row in range(100)]
    shares = {"train": 0.5, "test": 0.5}
    there = deal(rows, [row["text"] for row in rows], shares, seed=3)
    back = deal(rows[::-1], [row["text"] for row in rows[::-1]], shares, seed=3)
    assert there == back
    assert there != deal(rows, [row["text"] for row in rows], shares, seed=4)


def test_too_few_groups_are_refused():
    rows = [{"text": str(row)} for row in range(100)]
    with pytest.raises(ConfigError, match="100 in 2 groups leave none for 'test'"):
        deal(rows, [str(row % 2) for row in range(100)], {"train": 0.5, "judge": 0.2, "test": 0.3}, seed=0)


def test_stories_fill_all_splits(store: Store):
    splits = texts_of(Stories(size=200), store)
    assert len(splits["train"]) == 200 and all(splits.values())


# ---------------------------------------------------------------- imported files


def test_groups_of_a_column_never_cross_splits(store: Store, tmp_path: Path):
    data = import_files(f"{csv_file(tmp_path / 'dev.csv')}:ref:mr", f"{csv_file(tmp_path / 'test.csv')}:ref:mr", store)
    splits = texts_of(data, store)
    where = {split: {int(text.split()[1]) % 40 for text in texts} for split, texts in splits.items()}
    assert not where["train"] & where["judge"] and not where["valid"] & where["test"]
    assert len(splits["train"]) + len(splits["judge"]) == len(splits["valid"]) + len(splits["test"]) == 200
    assert splits["train"][0].endswith('said "hello", and left.')
    row = read_rows(Context(store).get(data), "test")[0]
    assert row["source"] == f"who[{int(row['text'].split()[1]) % 40}], what[dog]"            # what it was written from


def test_equal_texts_stay_in_one_split(store: Store, tmp_path: Path):
    (tmp_path / "twice.txt").write_text("".join(f"text {line % 60}\n" for line in range(600)))
    splits = texts_of(import_files(str(tmp_path / "twice.txt"), None, store), store)
    assert sum(len(set(texts)) for texts in splits.values()) == 60


def test_what_counts_is_the_content_and_not_the_place(store: Store, tmp_path: Path):
    here = import_files(f"{csv_file(tmp_path / 'a' / 'dev.csv')}:ref:mr", None, store)
    there = import_files(f"{csv_file(tmp_path / 'b' / 'dev.csv')}:ref:mr", None, store)
    other = import_files(f"{csv_file(tmp_path / 'c' / 'dev.csv', word='cat')}:ref:mr", None, store)
    assert here == there and fingerprint(here) == fingerprint(there) != fingerprint(other)
    assert str(tmp_path) not in json.dumps(to_dict(here))
    assert from_dict(Data, to_dict(here)) == here


def test_the_store_is_all_that_another_machine_needs(tmp_path: Path):
    file = csv_file(tmp_path / "dev.csv")
    data = import_files(f"{file}:ref", None, Store("memory://corpora", cache=tmp_path / "one"))
    file.unlink()
    other = Imported(name=data.name, digest=data.digest, seed=1)           # dealt anew: only the content is there
    assert texts_of(other, Store("memory://corpora", cache=tmp_path / "two"))["train"]


def test_content_that_is_not_in_the_store_is_named(store: Store):
    with pytest.raises(ConfigError, match="not in this store: name the files with --data once more"):
        Context(store).get(Imported(name="dev", digest="0" * 16))


def test_torn_content_is_brought_again(store: Store, tmp_path: Path):
    file = csv_file(tmp_path / "dev.csv")
    data = import_files(f"{file}:ref", None, store)
    shelf = store.folder / "imports" / f"{data.digest}.json"
    shelf.write_bytes(shelf.read_bytes()[:100])
    shutil.rmtree(store.path(data))
    with pytest.raises(ConfigError, match="not in this store"):
        Context(store).get(data)
    assert import_files(f"{file}:ref", None, store) == data and store.has(data)


def test_jsonl_keeps_source_and_class(store: Store, tmp_path: Path):
    file = tmp_path / "notes.jsonl"
    file.write_text("".join(json.dumps({"story": f"a  story\n{n}", "source": f"s{n}", "class": n % 3}) + "\n\n"
                            for n in range(80)))
    folder = Context(store).get(import_files(f"{file}:story", None, store))
    rows = [row for split in SPLITS for row in read_rows(folder, split)]
    assert sorted(rows, key=lambda row: int(row["source"][1:])) == \
        [{"source": f"s{n}", "class": str(n % 3), "text": f"a story {n}"} for n in range(80)]


def test_a_byte_order_mark_is_no_letter(tmp_path: Path):
    file = tmp_path / "bom.txt"
    file.write_text("".join(f"line {n}\n" for n in range(60)), encoding="utf-8-sig")
    assert parse_file(str(file))[0][0] == {"text": "line 0"}


FINE = "".join(f"line {n}\n" for n in range(60))
BAD = {
    "stories.txt": (None, "", "no such file"),
    "empty.txt": (b"\n \n", "", "the file is empty"),
    "latin.txt": (b"one\ncaf\xe9\n", "", "not UTF-8: byte 0xe9 in line 2"),
    "short.txt": (b"one\ntwo\n", "", "too few texts: 2, and at least 50"),
    "lines.txt": (FINE.encode(), ":text", "no columns"),
    "table.tsv": (FINE.encode(), "", "ends in '.tsv'; it must end in .txt, .jsonl or .csv"),
    "table.csv": (b"mr,ref\n" + b"a,b\n" * 60, "", "say which column holds the text"),
    "miss.csv": (b"mr,ref\n" + b"a,b\n" * 60, ":reff", r"no column 'reff' \(did you mean 'ref'\?\)"),
    "group.csv": (b"mr,ref\n" + b"a,b\n" * 60, ":ref:mrs", r"no column 'mrs' \(did you mean 'mr'\?\)"),
    "same.csv": (b"mr,ref\n" + b"a,b\n" * 60, ":ref", "60 in 1 groups leave none for"),
    "none.csv": (b"mr,ref\n" + b"a,\n" * 60, ":ref", "too few texts: 0"),
    "text.jsonl": (b'{"text": "a"}\n{"text"\n', "", "line 2 is not JSON"),
    "list.jsonl": (b'["a"]\n', "", "line 1 is not an object"),
    "field.jsonl": (b'{"text": "a"}\n', ":txt", r"line 1 has no field 'txt' \(did you mean 'text'\?\)"),
    "type.jsonl": (b'{"text": 3}\n', "", "line 1: field 'text' must be a text, not 3"),
    "half.jsonl": (b'{"text": "a"}\n{"text": "cut \\ud83d"}\n', "", "line 2 has half a character"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_line(name: str, store: Store, tmp_path: Path):
    content, column, problem = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=problem) as error:
        choose_data(f"{tmp_path / name}{column}", None, store)
    assert "\n" not in str(error.value) and name in str(error.value)


def test_a_near_file_is_suggested(store: Store, tmp_path: Path):
    (tmp_path / "stories.txt").write_text(FINE)
    with pytest.raises(ConfigError, match=r"no such file \(did you mean 'stories.txt'\?\)"):
        choose_data(str(tmp_path / "storys.txt"), None, store)


# ---------------------------------------------------------------- what --data says


def test_data_is_chosen_by_what_it_looks_like(store: Store, tmp_path: Path):
    assert choose_data("stories", None, store) == Stories()
    assert choose_data("RocStories", None, store) == RocStories()
    assert choose_data("owner/news:title+body", None, store) == HubTexts(name="owner/news", columns=("title", "body"))
    (tmp_path / "lines").write_text(FINE)
    assert isinstance(choose_data(str(tmp_path / "lines"), None, store), Imported)
    with pytest.raises(ConfigError, match=r"no built-in corpus \(did you mean 'stories'\?\)"):
        choose_data("storeis", None, store)
    with pytest.raises(ConfigError, match="goes with a"):
        choose_data("stories", "test.txt", store)


# ---------------------------------------------------------------- hub data sets, from local folders


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data set folder that the `datasets` library loads without a network."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hub"
    folder.mkdir()
    rows = [{f"sentence{i}": f"Story {n} part {i}." for i in range(1, 6)} | {"storyid": str(n)} for n in range(300)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_hub_columns_are_joined(hub: str, store: Store):
    data = HubTexts(name=hub, columns=("sentence1", "sentence2"), source_columns=("storyid",), judge=0.2)
    rows = {split: read_rows(Context(store).get(data), split) for split in SPLITS}
    assert [len(rows[split]) for split in SPLITS] == [210, 60, 15, 15]
    row = rows["test"][0]
    assert row["text"] == f"Story {row['source']} part 1. Story {row['source']} part 2."


def test_a_script_of_the_hub_is_read_from_its_branch_of_files(hub: str, store: Store, tmp_path: Path):
    """As the hub lays LM1B out there: the split that is asked for, and no other; the recipe asks for that branch."""
    import pandas

    for split, count in (("train", 300), ("test", 40)):
        (folder := tmp_path / "lm1b" / "plain_text" / split).mkdir(parents=True)
        pandas.DataFrame({"text": [f"{split} sentence {row} ." for row in range(count)]}).to_parquet(
            folder / "0000.parquet")
    data = diffusionbert().data
    assert isinstance(data, HubTexts) and data.revision == PARQUET == "refs/convert/parquet"
    splits = texts_of(replace(data, name=str(tmp_path / "lm1b")), store)
    assert sorted(text for texts in splits.values() for text in texts) == sorted(
        f"train sentence {row} ." for row in range(300))


def test_roc_stories_hold_out_what_the_paper_holds_out(hub: str, store: Store):
    splits = texts_of(RocStories(name=hub, held_out=100, valid=20, judge=30), store)
    assert [len(splits[split]) for split in SPLITS] == [200, 30, 20, 50]
    assert len({text for texts in splits.values() for text in texts}) == 300
    assert all(text.count("part") == 5 for text in splits["train"])


@pytest.mark.parametrize(("data", "problem"), [
    (HubTexts(name="{hub}", columns=("sentense1",)), "has no column 'sentense1' \\(did you mean 'sentence1'"),
    (HubTexts(name="{hub}/none"), "cannot load the data set"),
    (RocStories(name="{hub}"), "has 300 stories; 10,000 cannot be held out"),
])
def test_hub_errors_are_one_line(data: HubTexts | RocStories, problem: str, hub: str, store: Store):
    data = from_dict(Data, to_dict(data) | {"name": data.name.format(hub=hub)})
    with pytest.raises(ConfigError, match=problem) as error:
        Context(store).get(data)
    assert "\n" not in str(error.value)
