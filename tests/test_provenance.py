"""What is remembered of a dirty tree: enough to make it again, and no secret."""

import subprocess
from pathlib import Path

import pytest

from studies.engine.provenance import LONGEST, NEW_FILE, code


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
                          check=True, capture_output=True, text=True).stdout


@pytest.fixture
def tree(tmp_path) -> Path:
    folder = tmp_path / "tree"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "old.py").write_text("old = 1\n")
    git(folder, "add", "old.py")
    git(folder, "commit", "-qm", "first")
    return folder


def test_a_dirty_tree_can_be_made_again_from_its_commit_and_its_diff(tree, tmp_path):
    assert code(tree).diff == "" and code(tree).digest == ""
    (tree / "old.py").write_text("old = 2\n")
    (tree / "new").mkdir()
    texts = {"new/schedule.py": "class Mine:\n    d = 3", "empty.py": "", "umlaut ä.txt": "größer\n"}
    for name, text in texts.items():
        (tree / name).write_text(text)
    found = code(tree)
    git(tmp_path, "clone", "-q", str(tree), "again")
    (tmp_path / "patch").write_text(found.diff)
    git(tmp_path / "again", "apply", str(tmp_path / "patch"))
    for name, text in (texts | {"old.py": "old = 2\n"}).items():
        assert (tmp_path / "again" / name).read_text() == text
    (tree / "new/schedule.py").write_text("class Mine:\n    d = 4")
    assert code(tree).digest != found.digest                                 # what it says counts, not its name


@pytest.mark.parametrize("name", [
    ".env", ".env.local", "config/.env", "id_rsa", "server.pem", "aws_credentials.json", "my-secret.txt", ".netrc",
    "hub_token", ".aws/config", "PASSWORDS.txt"])
def test_what_may_be_a_secret_is_named_and_not_read(name, tree):
    (tree / name).parent.mkdir(exist_ok=True)
    (tree / name).write_text("hunter2\n")
    assert code(tree).diff == f"untracked: {name}\n"


def test_what_is_large_or_no_text_is_named_and_the_whole_is_bounded(tree):
    (tree / "key.txt").write_text("-----BEGIN PRIVATE KEY-----\nhunter2\n")
    (tree / "large.txt").write_text("x" * (NEW_FILE + 1))
    (tree / "model.bin").write_bytes(b"\xff\xfe\0")
    assert sorted(code(tree).diff.splitlines()) == ["untracked: key.txt", "untracked: large.txt",
                                                    "untracked: model.bin"]
    for number in range(20):
        (tree / f"{number}.txt").write_text("x" * (NEW_FILE - 1) + "\n")
    found = code(tree).diff
    assert len(found) <= LONGEST and "untracked: 9.txt" in found and "new file mode" in found
