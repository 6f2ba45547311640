"""How reports come from a cluster: on the head, this program prints them; here, `unpack` reads what it printed.

    python -m studies.engine.bring /results/ablation_encoder     a marked block of text: a gzipped tar, in base64

A job's log is the one thing that comes back through Ray's job server, whatever lies between.
"""

import base64
import io
import sys
import tarfile
from pathlib import Path

WANTED = (".html", ".md", ".tex", ".csv", ".json")
BEGIN, END = "-----BEGIN PALIMPSEST REPORTS-----", "-----END PALIMPSEST REPORTS-----"


def pack(folder: Path) -> str:
    """The reports in a study's folder, as text."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.suffix in WANTED and not path.name.startswith("."):
                archive.add(path, path.name)
    return f"{BEGIN}\n{base64.encodebytes(packed.getvalue()).decode()}{END}\n"


def unpack(text: str, folder: Path) -> list[str]:
    """Write them into a folder, each whole or not at all; their names, none where there are none."""
    _, found, rest = text.partition(BEGIN + "\n")
    block, whole, _ = rest.partition(END)
    if not found or not whole:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(block)), mode="r:gz") as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is None or Path(member.name).name != member.name:
                continue
            beside = folder / f".{member.name}.part"
            beside.write_bytes(content.read())
            beside.replace(folder / member.name)
            names.append(member.name)
    return names


if __name__ == "__main__":
    if not (folder := Path(sys.argv[1])).is_dir():
        sys.exit(f"there is no {folder} here")
    print(pack(folder), end="")
