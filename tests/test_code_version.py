"""What code a result depends on: definitions that it reaches, packages, and nothing else."""

import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from toy_night import toy

from studies.engine import code_version
from studies.engine.code_version import CodeVersions
from studies.engine.ledger import Ledger

# MLflow, SQLAlchemy and Ray warn about each other; what is ours still stops a test.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in (
    "DeprecationWarning", "PendingDeprecationWarning", "FutureWarning", "ResourceWarning")]


CORE = {
    "core/__init__.py": "",
    "core/maths.py": '''
        SCALE = 2.0
        def used(x):
            """Doubles."""
            return x * SCALE
        def unused(x):
            return x
        ''',
    "core/passed_on.py": "from core.maths import used\n",
    "core/other.py": "class Other:\n    size = 1\n",
    "core/made.py": '''
        class Table:
            version = 1
            def needs(self): return ()
            def make(self, out, context): return 1
        ''',
    "core/model.py": '''
        from typing import TYPE_CHECKING
        import json
        from core import made
        from core.other import Other
        from core.passed_on import used
        if TYPE_CHECKING:
            from core.nowhere import Nothing
        class Model:
            other: Other | None = None
            def loss(self, x: Other) -> "Nothing":
                from core.late import late
                return used(x) + late(x)
            def table(self):
                return made.Table()
        ''',
    "core/late.py": "import numpy as np\ndef late(x):\n    return np.abs(x)\n",
}


class Core:
    """A few files, and a class that stands for one in them."""

    def __init__(self, root: Path):
        self.root = root
        for name, text in CORE.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_text(textwrap.dedent(text))

    def version(self, module: str = "core.model", name: str = "Model") -> str:
        return CodeVersions(self.root)(self.stand_in(module, name))

    def table(self) -> dict[str, str]:
        return CodeVersions(self.root).table([self.stand_in("core.model", "Model")])

    @staticmethod
    def stand_in(module: str, name: str) -> type:
        return type(name, (), {"__module__": module, "__qualname__": name})

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text()
        assert old in text
        (self.root / name).write_text(text.replace(old, new))


@pytest.fixture
def core(tmp_path) -> Core:
    return Core(tmp_path)


def test_a_class_reaches_what_it_names_and_nothing_else(core):
    assert core.table().keys() == {
        "python", "package numpy", "core/__init__.py: on import", "core/model.py: Model", "core/model.py: on import",
        "core/maths.py: used", "core/maths.py: SCALE", "core/maths.py: on import", "core/passed_on.py: on import",
        "core/late.py: late", "core/late.py: on import"}


@pytest.mark.parametrize("name, old, new", [
    ("core/maths.py", '"""Doubles."""', '"""Twice as much."""  # a comment'),
    ("core/maths.py", "    return x * SCALE", "\n    return (x\n            * SCALE)"),
    ("core/maths.py", "def unused(x):\n    return x", "def unused(x):\n    return x + 1"),
    ("core/other.py", "size = 1", "size = 2"),                              # an annotation alone
    ("core/made.py", "return 1", "return 2"),                               # a stage has a key of its own
])
def test_what_does_not_count_changes_nothing(core, name, old, new):
    before = core.version()
    core.edit(name, old, new)
    assert core.version() == before


@pytest.mark.parametrize("name, old, new", [
    ("core/maths.py", "SCALE = 2.0", "SCALE = 2.5"), ("core/maths.py", "x * SCALE", "x + SCALE"),
    ("core/late.py", "np.abs(x)", "-x"), ("core/model.py", "used(x) + late(x)", "used(x) - late(x)"),
    ("core/model.py", "other: Other | None", "other: Other | int"), ("core/passed_on.py", "core.maths", "core.late"),
    ("core/maths.py", "SCALE = 2.0", "SCALE = 2.0\nprint()"),               # runs on import
])
def test_what_counts_changes_it(core, name, old, new):
    before = core.version()
    core.edit(name, old, new)
    assert core.version() != before


def test_a_new_release_of_a_package_counts(core, monkeypatch):
    before = core.version()
    monkeypatch.setattr(code_version, "installed", lambda package: "99")
    assert core.version() != before and core.version("core.made", "Table") == core.version("core.made", "Table")


def test_a_stage_counts_where_it_is_asked_about(core):
    before = core.version("core.made", "Table")
    core.edit("core/made.py", "return 1", "return 2")
    assert core.version("core.made", "Table") != before


def test_all_code_that_a_real_trial_runs_is_in_its_version(tmp_path):
    """Watched while it runs: a function that a stage calls and that its digest, or its needs', does not know would be a
    change that a night does not see."""
    from test_trial import tiny

    from trainables.config import classes
    from trainables.stages import Context, Stage, Store, upstream
    from trainables.text.corpora import Stories

    root, versions, ours = code_version.ROOT, CodeVersions(), f"{code_version.ROOT / 'trainables'}/"
    making: list[Stage | None] = [None]
    called: dict[Stage, set[tuple[str, str]]] = {}

    class Watching(Store):
        def get(self, stage: Stage, context: Context, make: Any = None) -> Path:
            def watched(*arguments: Any) -> None:
                making.append(stage)
                (make or stage.make)(*arguments)
                making.pop()
            making.append(None)                     # what the store does, naming stages included, is nobody's
            try:
                return super().get(stage, context, watched)
            finally:
                making.pop()

    def note(frame: Any, event: str, argument: Any) -> None:
        if making[-1] and (code := frame.f_code).co_filename.startswith(ours):
            called.setdefault(making[-1], set()).add((code.co_filename, code.co_qualname.partition(".")[0]))

    few = ("training.steps", "system.decoder.training.steps", "system.encoder.weights.training.steps")
    trial = tiny(Stories(size=100), dict.fromkeys(few, 4))
    sys.settrace(note)
    try:
        Context(Watching(tmp_path)).get(trial.metrics())
    finally:
        sys.settrace(None)
    assert len(called) > 5 and sum(map(len, called.values())) > 200
    harness = {"trainables.stages", "trainables.training.parallel"}         # where a stage runs, not what it says
    for stage, names in called.items():
        known = set().union(*(versions.reached(classes(each)) for each in upstream(stage)))
        said = {(".".join(Path(file).relative_to(root).with_suffix("").parts), name) for file, name in names}
        missed = {at for at in said - known if at[0] not in harness and not at[1].startswith("<")}
        assert not missed, type(stage).__name__


@pytest.mark.parametrize("changed, part", [("Scored", "has its samples: it is only scored"),
                                           ("Sampled", "is trained: it is sampled and scored"), ("Trained", None)])
def test_changed_code_runs_what_stands_on_it_and_nothing_else(tmp_path, changed, part):
    """Cells done with one state of the code, planned with another: what the store has of them is used."""
    from studies.engine.inline import Place, attempt
    from studies.engine.planning import make_plan
    from studies.engine.provenance import Code
    from studies.engine.study import Resources
    from trainables.stages import Store

    def planned(code: Any) -> Any:
        return make_plan(toy(), scale="laptop", why="", ledger=Ledger(tmp_path / "toy"), resources=Resources(), seeds=2,
                         store=Store(tmp_path / "stages", code=code), arms=["plain"])

    place = Place(study="toy", scale="laptop", data="Words", folder=tmp_path / "toy", store=str(tmp_path / "stages"),
                  resources=Resources(), code=Code("unknown", ""), by_code=lambda cls: cls.__name__)
    for cell in planned(place.by_code).missing:
        assert attempt(cell, place, lambda context, cell=cell: context.get(cell.scored()))["status"] == "done"
    assert not planned(lambda cls: cls.__name__).missing and len(planned(None).missing) == 2
    again = planned(lambda cls: cls.__name__ + "!" * (cls.__name__ == changed))
    assert len(again.missing) == 2 and set(again.reused.values()) == ({part} if part else set())
    assert {each.why for each in again.stale.values()} == {f"stage {changed} has another version or other code"}
