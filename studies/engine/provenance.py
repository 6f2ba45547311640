"""Where a result came from: the commit, and what the tree said besides.

A tree that was sent to a cluster has no repository; it carries a file that says both.
"""

import difflib
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 500_000                       # characters of a diff that are kept
CARRIED = ".provenance.json"            # what a sent tree says of itself
NEW_FILE = 50_000                       # bytes of a file that git does not know and that is kept whole
SECRET = re.compile(r"^\.env|secret|credential|passw|token|netrc|pgpass|htpasswd|kubeconfig|^id_[a-z0-9]+$|"
                    r"\.(pem|key|p12|pfx|jks|kdbx|gpg|asc)$|^\.(ssh|aws|azure|kube|gnupg|docker)$", re.IGNORECASE)


@dataclass(frozen=True)
class Code:
    """The code that runs: commit, and the difference of the working tree to it ("" when clean)."""

    commit: str
    diff: str

    @property
    def digest(self) -> str:
        """What the difference is filed under; "" when clean."""
        return hashlib.sha256(self.diff.encode()).hexdigest()[:12] if self.diff else ""


def code(root: Path = ROOT) -> Code:
    """The state of the repository that this file lies in.

    Outside of one, as in an image, it is the commit that PALIMPSEST_COMMIT names, or "unknown".
    """
    if (root / CARRIED).exists():
        return Code(**json.loads((root / CARRIED).read_text(encoding="utf-8")))
    commit = _git(root, "rev-parse", "HEAD").strip()
    if not commit:
        return Code(os.environ.get("PALIMPSEST_COMMIT") or "unknown", "")
    new = _git(root, "ls-files", "-z", "--others", "--exclude-standard").split("\0")
    diff = _git(root, "diff", "HEAD", "--no-ext-diff")[:LONGEST]
    for name in filter(None, new):
        added = added_file(root, name)
        diff += added if len(diff) + len(added) <= LONGEST else f"untracked: {name}\n"
    return Code(commit, diff[:LONGEST])


def added_file(root: Path, name: str) -> str:
    """A file that git does not know, as a patch that makes it; its name alone where it is large, no text, or may hold
    a secret."""
    alone, path = f"untracked: {name}\n", root / name
    if any(SECRET.search(part) for part in Path(name).parts):
        return alone
    try:
        if path.is_symlink() or path.stat().st_size > NEW_FILE:
            return alone
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return alone
    if "\0" in text or "PRIVATE KEY-----" in text:
        return alone
    lines = [line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
             for line in text.splitlines(keepends=True)]
    return f"diff --git a/{name} b/{name}\nnew file mode 100644\n" + "".join(
        difflib.unified_diff([], lines, "/dev/null", f"b/{name}"))


def commits(old: str, new: str, paths: Iterable[str], root: Path = ROOT) -> list[str]:
    """The commits after `old`, up to `new`, that touch these paths, latest first; [] where git does not know."""
    said = _git(root, "log", "--no-merges", "--format=%h %an: %s", f"{old}..{new}", "--", *paths)
    return said.splitlines()


def _git(root: Path, *arguments: str) -> str:
    try:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20,
                              errors="replace", check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
