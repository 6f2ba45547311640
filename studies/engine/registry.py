"""The registry: the best model of a study, as a generator that MLflow names, keeps and loads.

    findings --selection.py--> cell --release--> <out>/<study>/best            a plain folder
        --models from code--> logged model of the cell's run --> palimpsest-<study>, a version, alias "best"

Nothing here is remembered: each command compares what the ledger says with what the registry has, and makes up the
difference.  So a server that is away is a backlog that the next command ships, a command that was killed half-way is
continued, and one that is typed again registers nothing twice: a version is known by the key of its cell.

The alias moves when another cell is the best of what is compared; an older best that was not compared today (other
arms) keeps it while its value is better, at the same scale, on the same data.  "best-<scale>" stands beside it.
"""

import logging
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from studies.engine.cluster import settle_environment
from studies.engine.findings import Findings
from studies.engine.plan import Cell
from studies.engine.provenance import ROOT
from studies.engine.selection import best_arm, best_cell
from studies.engine.study import BadInput, Minimise
from studies.engine.tracking import Tracking, knock, shown, tracking_uri
from trainables.config import ConfigError
from trainables.release import release
from trainables.shelf import ABOUT, read_json
from trainables.stages import Store
from trainables.trial import Sampled

PREFIX, ALIAS = "palimpsest-", "best"
WITHOUT = {"ray", "optuna", "typer", "rich", "statsmodels", "pyyaml"}      # of what Palimpsest needs, a generator


def keep_best(findings: Findings, store: Store, out: Path) -> str | None:
    """Release the best cell and bring the registry to it; why it could not be done, which costs nobody anything."""
    found = best_cell(findings, store)
    if found is None or not isinstance(found[0].samples(), Sampled):
        return None
    try:
        told = tags(findings, *found)
        folder = released(found[0], told, store, findings.ledger.folder / ALIAS)
        return bring(Tracking(findings.plan.study.name, out), folder, told, findings, found[2])
    except Exception as error:          # the registry's, the store's, the disk's: the study is what it was
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:300]}"


def tags(findings: Findings, cell: Cell, metric: str, value: float) -> dict[str, str]:
    """What a version says of itself."""
    plan, record, picked = findings.plan, findings.records[cell.key], best_arm(findings)
    return {"cell": cell.key, "study": plan.study.name, "arm": cell.arm, "seed": str(cell.seed), "scale": plan.scale,
            "data": plan.data, "commit": record.get("commit", "unknown") + "-dirty" * bool(record.get("dirty")),
            "chosen_by": metric, "value": repr(value), "arm_chosen_by": "" if picked is None else picked[1],
            } | {f"metric.{name}": repr(number) for name, number in record["metrics"].items()}


def released(cell: Cell, told: Mapping[str, str], store: Store, folder: Path) -> Path:
    """The cell's generator in this folder, made where another one, or none, is there."""
    if (folder / ABOUT).is_file() and read_json(folder / ABOUT).get("about", {}).get("cell") == cell.key:
        return folder
    return release(cell.samples(), store, folder, told)             # type: ignore[arg-type]


# ---------------------------------------------------------------- MLflow


def bring(tracking: Tracking, folder: Path, told: dict[str, str], findings: Findings, value: float) -> None:
    """See that the cell has its version, and the aliases point to it."""
    client, name = tracking.client, PREFIX + told["study"]
    here = client.search_model_versions(f"name = '{name}' and tags.cell = '{told['cell']}'")
    held = {alias: _held(client, name, alias) for alias in (ALIAS, f"{ALIAS}-{told['scale']}")}
    if not here and any(_better(tracking, other, told, value, findings) for other in held.values() if other):
        return                                                      # the best of other arms, which are not asked today
    number = here[0].version if here else register(tracking, name, folder, told)
    for alias, other in held.items():
        if (other is None or str(other.version) != str(number)) and not (
                other and _better(tracking, other, told, value, findings)):
            client.set_registered_model_alias(name, alias, number)


def _held(client: Any, name: str, alias: str) -> Any:
    """The version that an alias points to, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _better(tracking: Tracking, other: Any, told: Mapping[str, str], value: float, findings: Findings) -> bool:
    """Whether a version that was not compared today is better than today's best."""
    same = all(other.tags.get(name) == told[name] for name in ("scale", "data", "chosen_by"))
    if not same or other.tags.get("cell") in {cell.key for cell in findings.plan.cells}:
        return False
    if other.run_id and "superseded_by" in tracking.client.get_run(other.run_id).data.tags:
        return False                                                # of older code, or data that have changed
    theirs = float(other.tags.get("value", "nan"))
    return theirs < value if isinstance(findings.deciding, Minimise) else theirs > value


def register(tracking: Tracking, name: str, folder: Path, told: Mapping[str, str]) -> str:
    """Log the model to the cell's run and make a version of it; its number.  What was begun before is continued."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    client = tracking.client
    run = tracking.runs.get(told["cell"]) or tracking.find(told["cell"])
    begun = client.search_logged_models([tracking.experiment], f"tags.cell = '{told['cell']}'")
    model = next(iter(begun), None) or client.create_logged_model(
        tracking.experiment, name=name, source_run_id=run, tags=dict(told), model_type="generator")
    if model.status != "READY":
        work = folder.with_name(f".mlflow.{uuid.uuid4().hex}")
        try:
            save(folder, work, Model(model_uuid=model.model_id, model_id=model.model_id, run_id=run,
                                     artifact_path=model.artifact_location))
            client.log_model_artifacts(model.model_id, str(work))
        finally:
            shutil.rmtree(work, ignore_errors=True)
        if run is not None:
            outputs = client.get_run(run).outputs
            if outputs is None or model.model_id not in {each.model_id for each in outputs.model_outputs}:
                client.log_outputs(run, [LoggedModelOutput(model.model_id, step=0)])     # twice is an error
        client.finalize_logged_model(model.model_id, "READY")
    try:
        client.create_registered_model(name, description="The best models of a study, as generators of texts.")
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
            raise
    # not models:/<id>: a store without a server would look for that where the process, not the client, records
    return client.create_model_version(name, model.artifact_location, run, dict(told),
                                       model_id=model.model_id).version


def save(folder: Path, out: Path, model: Any) -> None:
    """The released folder as an MLflow model, from code: `out` holds it, what loads it, and trainables/."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    system = read_json(folder / ABOUT)["samples"]["system"]
    reads = {"source": bool(system.get("source_length")) or system.get("source", {}).get("class") == "Source",
             "class": bool(system.get("classes"))}
    asked = {name: f"a {name}" for name, wanted in reads.items() if wanted}
    inputs = Schema([ColSpec("long", "n"), ColSpec("long", "seed", required=False),
                     *(ColSpec("string", name) for name in asked)])
    mlflow.pyfunc.save_model(
        str(out), python_model=str(Path(__file__).with_name("writer.py")), artifacts={"generator": str(folder)},
        code_paths=[str(ROOT / "trainables")], mlflow_model=model, pip_requirements=requirements(),
        signature=ModelSignature(inputs=inputs, outputs=Schema([ColSpec("string")])),
        input_example={"n": 3, "seed": 0} | asked, metadata=read_json(folder / ABOUT)["about"])
    for cache in out.rglob("__pycache__"):
        shutil.rmtree(cache, ignore_errors=True)


def requirements() -> list[str]:
    """What a generator stands on, as it is installed here."""
    try:
        named = [re.match(r"[\w.-]+", line) for line in requires("palimpsest") or () if "extra ==" not in line]
    except PackageNotFoundError:
        return ["torch", "transformers", "safetensors", "sentencepiece"]
    names = [found[0] for found in named if found and found[0].lower() not in WITHOUT]
    return [f"{name}=={version(name)}" for name in names]


# ---------------------------------------------------------------- the way back


def fetch(uri: str, into: Path) -> Path:
    """The released folder behind models:/NAME@best or models:/NAME/2, downloaded.   ConfigError: no such model

    The entry point `palimpsest.models` of trainables.generate: MLFLOW_TRACKING_URI names the server, or else results/
    of the folder where one is.
    """
    settle_environment()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    out = Path("results").absolute()
    place = tracking_uri(out)
    file = place.removeprefix("sqlite:///")
    if file != place and not Path(file).is_file():
        raise ConfigError("--model", f"{uri}: there is no {file}; MLFLOW_TRACKING_URI names the server")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    try:
        knock(place)
        from mlflow.artifacts import download_artifacts

        folder = Path(download_artifacts(uri, dst_path=str(into), tracking_uri=place, registry_uri=place))
    except BadInput as error:
        raise ConfigError("--model", str(error)) from None
    except Exception as error:          # MlflowException, and its stores' own
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ConfigError("--model", f"{shown(place)} has no {uri}: {reason[:300]}") from None
    generator = next((path.parent for path in sorted(folder.rglob(ABOUT))), None)
    if generator is None:
        raise ConfigError("--model", f"{uri} is no generator of ours: it has no {ABOUT}")
    return generator
