"""Folders depend only downwards, and Ray, MLflow and Optuna live in studies/engine alone."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = {"ray", "mlflow", "optuna"}
FORBIDDEN = {
    "trainables": CLUSTER | {"search_spaces", "studies", "cluster"},
    "trainables/diffusion": {"transformers", "datasets", "numpy"},
    "search_spaces": CLUSTER | {"studies", "cluster"},
    "studies/engine": {"cluster"},
}


def imports(path: Path) -> Iterator[str]:
    """The first word of everything a file imports, functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports from the root"
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_folders_depend_only_downwards(folder):
    for path in (ROOT / folder).rglob("*.py"):
        banned = FORBIDDEN[folder] & set(imports(path))
        assert not banned, f"{path.relative_to(ROOT)} imports {banned}"


def test_studies_leave_the_cluster_to_the_engine():
    for path in (ROOT / "studies").glob("*.py"):
        banned = CLUSTER & set(imports(path))
        assert not banned, f"{path.relative_to(ROOT)} imports {banned}"


def modules(folder: str) -> list[str]:
    paths = [path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / folder).rglob("*.py"))]
    return [".".join(path.parts).removesuffix(".__init__") for path in paths]


def test_importing_the_model_core_loads_no_cluster_library():
    """Transitively, too: the core runs on a machine that has only torch and transformers."""
    program = (f"import importlib, sys\n"
               f"for name in {modules('trainables') + modules('search_spaces')!r}: importlib.import_module(name)\n"
               f"print(*sorted({CLUSTER | {'studies'}!r} & {{name.partition('.')[0] for name in sys.modules}}))")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_planning_loads_no_ray():
    """--dry-run, --report and a finished study answer without Ray."""
    program = ("import sys, studies.engine.main, studies.engine.plan, studies.engine.tracking\n"
               "print(*({'ray', 'mlflow'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
