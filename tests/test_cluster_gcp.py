"""cluster/gcp.yaml: Ray's own code for Google, against an HTTP API that this process plays.

An instance's request is checked against Google's own description of it, which comes with the client.
"""

# pyright: reportMissingImports=false
import json
import re
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launching import ROOT, as_on_the_head, launch, launch_all, load


class Google:
    """Compute Engine, IAM and Resource Manager, as far as Ray asks."""

    def __init__(self, schemas: dict[str, Any]):
        self.schemas, self.instances, self.metadata = schemas, {}, {"fingerprint": "f", "items": []}
        self.policy: dict[str, Any] = {"bindings": []}
        self.sold_out = ""  # Google's word for why there is no spot machine, where there is none
        self.account: dict[str, Any] | None = None

    def wrong(self, value: Any, schema: dict[str, Any], where: str) -> Iterator[str]:
        """What Google would refuse in a value: unknown fields, types, names that are none of an enumeration."""
        schema = self.schemas[schema["$ref"]] if "$ref" in schema else schema
        kind = schema.get("type")
        if kind == "object":
            if not isinstance(value, dict):
                yield f"{where}: not an object"
                return
            for key, inner in value.items():
                below = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
                if below is None:
                    yield f"{where}.{key}: no such field"
                else:
                    yield from self.wrong(inner, below, f"{where}.{key}")
        elif kind == "array":
            if not isinstance(value, list):
                yield f"{where}: not a list"
                return
            for number, inner in enumerate(value):
                yield from self.wrong(inner, schema["items"], f"{where}[{number}]")
        else:
            types = {"string": (str, int), "integer": int, "boolean": bool, "number": (int, float), "any": object}[
                kind or "any"
            ]
            if not isinstance(value, types) or (kind == "integer" and isinstance(value, bool)):
                yield f"{where}: {value!r} is no {kind}"
            elif "enum" in schema and value not in schema["enum"]:
                yield f"{where}: {value!r} is none of {schema['enum']}"

    def answer(self, uri: str, method: str, body: Any) -> tuple[int, Any]:
        parts = urllib.parse.urlparse(uri)
        query, path = dict(urllib.parse.parse_qsl(parts.query)), parts.path
        done = 200, {"name": "operation", "status": "DONE"}
        if parts.netloc.startswith("cloudresourcemanager"):
            if path.endswith(":setIamPolicy"):
                self.policy = body["policy"]
            return 200, self.policy if "IamPolicy" in path else {
                "projectId": "p",
                "lifecycleState": "ACTIVE",
                "name": "p",
            }
        if parts.netloc.startswith("iam"):
            if method == "POST":
                self.account = {
                    "email": f"{body['accountId']}@p.iam.gserviceaccount.com",
                    "name": "account",
                    "projectId": "p",
                    "uniqueId": "1",
                }
            return (
                (200, self.account) if self.account else (404, {"error": {"code": 404, "message": "no such account"}})
            )
        if path.endswith("/setCommonInstanceMetadata"):
            self.metadata = body
            return done
        if "/operations/no-" in path:
            return 200, {"name": "no", "status": "DONE", "error": {"errors": [{"code": path.split("/no-")[-1]}]}}
        if "/operations/" in path:
            return done
        if path.endswith("/subnetworks"):
            return 200, {"items": [{"selfLink": "https://x/subnetworks/default", "name": "default"}]}
        if match := re.search(r"/zones/[^/]+/instances(?:/([^/]+)(?:/(\w+))?)?$", path):
            name, verb = match.groups()
            if method == "POST" and name is None:
                if found := list(self.wrong(body, {"$ref": "Instance"}, "Instance")):
                    return 400, {"error": {"code": 400, "message": "; ".join(found)}}
                if self.sold_out and body.get("scheduling", {}).get("provisioningModel") == "SPOT":
                    return 200, {"name": f"no-{self.sold_out}", "status": "RUNNING"}
                number = len(self.instances)
                for interface in body.get("networkInterfaces", []):
                    interface |= {
                        "networkIP": f"10.128.0.{number + 2}",
                        "accessConfigs": [{"natIP": f"34.0.0.{number + 2}"}],
                    }
                self.instances[body["name"]] = body | {"status": "RUNNING", "labelFingerprint": "f", "id": str(number)}
            elif method == "GET" and name is None:
                wanted = dict(re.findall(r"labels\.([\w-]+) = ([\w.-]+)", query.get("filter", "")))
                return 200, {
                    "items": [
                        each
                        for each in self.instances.values()
                        if all(each["labels"].get(key) == value for key, value in wanted.items())
                    ]
                }
            elif method == "GET":
                return 200, self.instances[name]
            elif method == "DELETE":
                del self.instances[name]
            elif verb == "setLabels":
                self.instances[name]["labels"] = body["labels"]
            return done
        if re.search(r"/projects/[^/]+$", path):
            return 200, {"commonInstanceMetadata": self.metadata, "name": "p"}
        return 404, {"error": {"code": 404, "message": f"{method} {uri}"}}


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Google:
    client = pytest.importorskip("googleapiclient", reason="needs google-api-python-client")
    httplib2 = pytest.importorskip("httplib2", reason="needs google-api-python-client")
    described = Path(client.__file__).parent / "discovery_cache/documents/compute.v1.json"
    google = Google(json.loads(described.read_text())["schemas"])

    def request(self: Any, uri: str, method: str = "GET", body: Any = None, **_: Any) -> tuple[Any, bytes]:
        status, answer = google.answer(uri, method, json.loads(body) if body else None)
        return httplib2.Response({"status": str(status), "content-type": "application/json"}), json.dumps(
            answer
        ).encode()

    import ray.autoscaler._private.gcp.node as node

    monkeypatch.setattr(httplib2.Http, "request", request)
    monkeypatch.setattr(node.GCPCompute.wait_for_operation, "__defaults__", (12, 0))  # no pause between two looks
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    return google


def gcp(**changes: Any) -> dict[str, Any]:
    config = load("gcp.yaml")
    config["provider"]["gcp_credentials"] = {"type": "credentials_token", "credentials": "none"}
    config["available_node_types"]["l4"]["node_config"] |= changes
    return config


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_google_launches_every_type_and_ends_it(google: Google):
    config, provider = launch_all(gcp())
    by_type = {each["labels"]["ray-user-node-type"]: each for each in google.instances.values()}
    assert by_type.keys() == load("gcp.yaml")["available_node_types"].keys()
    assert {name: each["machineType"].rsplit("/")[-1] for name, each in by_type.items()} == {
        "head": "n2-standard-4",
        "l4": "g2-standard-8",
        "a100": "a2-ultragpu-1g",
        "l4-x4": "g2-standard-48",
        "l4-ondemand": "g2-standard-8",
    }
    for name, each in by_type.items():
        model = each.get("scheduling", {}).get("provisioningModel", "STANDARD")
        assert model == ("STANDARD" if name in ("head", "l4-ondemand") else "SPOT")
        assert name == "head" or each["scheduling"]["onHostMaintenance"] == "TERMINATE", (
            "machines with GPUs cannot move"
        )
        assert each["labels"]["project"] == "palimpsest" and each["disks"][0]["autoDelete"]
    for each in provider.non_terminated_nodes({}):
        provider.terminate_node(each)
    assert not google.instances


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize(
    "changes",
    [
        {"scheduling": {"provisioningModel": "SPOTTY"}},
        {"scheduling": [{"preemptible": True}]},
        {"sheduling": {"provisioningModel": "SPOT"}},
    ],
)
def test_google_refuses(google: Google, changes: dict[str, Any]):
    with pytest.raises(Exception, match="none of|not an object|no such field"):
        launch_all(gcp(**changes))


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_google_sells_on_demand_where_spot_is_sold_out(google: Google, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config, plain = launch_all(gcp())
    google.instances.clear()
    provider = as_on_the_head(config, tmp_path, monkeypatch)

    def seen() -> list[tuple[str, str]]:
        return sorted(
            (each["scheduling"].get("provisioningModel", "STANDARD"), each["labels"]["palimpsest-market"])
            for each in google.instances.values()
        )

    launch(provider, config, "l4")
    assert seen() == [("SPOT", "spot")]
    google.sold_out = "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS"
    with pytest.raises(Exception, match="EXHAUSTED"):
        launch(plain, config, "l4")  # Ray alone gives up, and would ask the same again for ever
    launch(provider, config, "l4", 2)
    assert seen() == [("SPOT", "spot"), ("STANDARD", "on-demand"), ("STANDARD", "on-demand")]
    assert all("instanceTerminationAction" not in each["scheduling"] for each in google.instances.values()
               if "provisioningModel" not in each["scheduling"]), "Google knows that word for spot alone"
    google.sold_out = "PERMISSIONS_ERROR"  # not about capacity: the full price would not help
    with pytest.raises(Exception, match="PERMISSIONS_ERROR"):
        launch(provider, config, "l4")
    assert len(google.instances) == 3


def test_google_machines_stand_in_a_network_of_their_own():
    """Not in the default one, whose rules admit SSH from everywhere; and no image moves."""
    for each in load("gcp.yaml")["available_node_types"].values():
        (interface,) = each["node_config"]["networkInterfaces"]
        assert interface["subnetwork"].endswith("/subnetworks/palimpsest")
        assert "/family/" not in each["node_config"]["disks"][0]["initializeParams"]["sourceImage"]
    rules = re.findall(r"firewall-rules create .*", (ROOT / "cluster/gcp.yaml").read_text())
    assert len(rules) == 2 and all("--network=palimpsest" in rule and "0.0.0.0" not in rule for rule in rules)
