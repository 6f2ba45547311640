"""cluster/gcp.yaml and cluster/azure.yaml: Ray's own code for both, against their HTTP APIs played by this process.

    GCP      an instance's request is checked against Google's own description of it, which comes with the client
    Azure    every deployment's parameters are checked against the template that Ray sends along
"""

# pyright: reportMissingImports=false
import copy
import io
import json
import os
import re
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster" / name).read_text())


def launch_all(config: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Bootstrap as `ray up` does, then one machine of every type."""
    from ray.autoscaler._private.commands import _bootstrap_config
    from ray.autoscaler._private.providers import _get_node_provider

    config = _bootstrap_config(config, no_config_cache=True)
    provider = _get_node_provider(config["provider"], config["cluster_name"], use_cache=False)
    for name in config["available_node_types"]:
        launch(provider, config, name)
    return config, provider


def launch(provider: Any, config: dict[str, Any], name: str, count: int = 1) -> None:
    """Machines of one type, as Ray asks for them."""
    from ray.autoscaler import tags

    each = config["available_node_types"][name]
    kind = "head" if name == config["head_node_type"] else "worker"
    node = copy.deepcopy(each["node_config"]) | (config.get("head_node", {}) if kind == "head" else {})
    provider.create_node(
        node,
        {
            tags.TAG_RAY_NODE_KIND: kind,
            tags.TAG_RAY_USER_NODE_TYPE: name,
            tags.TAG_RAY_LAUNCH_CONFIG: "x",
            tags.TAG_RAY_NODE_NAME: f"ray-{config['cluster_name']}-{kind}",
            tags.TAG_RAY_NODE_STATUS: "uninitialized",
        },
        count,
    )


def as_on_the_head(config: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The provider that the autoscaler uses, made the way the head makes it."""
    from ray.autoscaler._private.providers import _get_node_provider

    path = folder / "ray_bootstrap_config.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    subprocess.run([sys.executable, str(ROOT / "cluster" / "spot.py"), str(path)], check=True)
    monkeypatch.syspath_prepend(str(ROOT))
    swapped = yaml.safe_load(path.read_text())
    return _get_node_provider(swapped["provider"], swapped["cluster_name"], use_cache=False)


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


@pytest.mark.parametrize(
    ("name", "program", "says", "path"),
    [
        ("gcp.yaml", "gcloud", "common-cu128-v20261101", "initializeParams.sourceImage"),
        ("azure.yaml", "az", "22.04.2026110101", "azure_arm_parameters.imageVersion"),
    ],
)
def test_the_line_in_the_file_pins_the_image(tmp_path: Path, name: str, program: str, says: str, path: str):
    """As it is written there, with a stand-in for the cloud's own program."""
    (tmp_path / "cluster").mkdir()
    copy_of = tmp_path / "cluster" / name
    copy_of.write_text((ROOT / "cluster" / name).read_text())
    (tmp_path / program).write_text(f"#!/bin/sh\necho {says}\n")
    (tmp_path / program).chmod(0o755)
    (line,) = re.findall(r"^# +(sed -i.before .*)$", copy_of.read_text(), re.M)
    for _ in range(2):
        env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        subprocess.run(["bash", "-c", line], cwd=tmp_path, env=env, check=True)
    was, now = (ROOT / "cluster" / name).read_text().splitlines(), copy_of.read_text().splitlines()
    changed = [new for old, new in zip(was, now, strict=True) if old != new]
    assert len(changed) == 1 and changed[0].endswith(says), changed
    for each in yaml.safe_load(copy_of.read_text())["available_node_types"].values():
        assert says in json.dumps(each["node_config"]), path


class Azure:
    """Azure Resource Manager, as far as Ray asks."""

    def __init__(self):
        self.machines: dict[str, dict[str, Any]] = {}
        self.last: tuple[int, Any] = (404, {})
        self.sold_out = ""  # Azure's word for why there is no spot machine, where there is none
        self.orphans: set[str] = set()  # interfaces of deployments that failed

    def deploy(self, name: str, properties: dict[str, Any]) -> tuple[int, Any]:
        known, given = properties["template"]["parameters"], properties["parameters"]
        kinds = {"string": str, "securestring": str, "int": int, "bool": bool, "object": dict, "array": list}
        wrong = [f"{key}: no such template parameter" for key in given if key not in known]
        wrong += [f"{key}: no value" for key, each in known.items() if "defaultValue" not in each and key not in given]
        for key in given.keys() & known.keys():
            kind, value = known[key]["type"].lower(), given[key]["value"]
            if not isinstance(value, kinds[kind]) or (kind == "int" and isinstance(value, bool)):
                wrong.append(f"{key}: {value!r} is no {kind}")
        if wrong:
            return 400, {"error": {"code": "InvalidTemplate", "message": "; ".join(wrong)}}
        values, outputs = {key: each["value"] for key, each in given.items()}, {}
        if self.sold_out and values.get("priority") == "Spot":
            self.orphans.add(f"{values['vmName']}-nic-public0")
            return 409, {"error": {"code": self.sold_out, "message": "none left"}}
        if "vmName" in values:
            for number in range(values["vmCount"]):
                self.machines[f"{values['vmName']}{number}"] = values
        else:
            outputs = {
                key: {"type": "string", "value": f"/subscriptions/0/resourceGroups/rg/providers/{key}"}
                for key in properties["template"].get("outputs", {})
            }
        return 200, {
            "id": f"/x/{name}",
            "name": name,
            "properties": {"provisioningState": "Succeeded", "outputs": outputs},
        }

    def answer(self, method: str, url: str, body: Any) -> tuple[int, Any]:
        path = urllib.parse.urlparse(url).path
        if match := re.search(r"/deployments/([^/]+)$", path, re.I):
            self.last = self.deploy(match[1], body["properties"]) if method == "PUT" else self.last
            return self.last
        if re.search(r"/resourcegroups/[^/]+$", path, re.I):
            return 200, {"id": path, "name": path.split("/")[-1], "location": "x"}
        if path.endswith(("/resources", "/skus")):
            return 200, {"value": []}
        if path.endswith("/networkInterfaces"):
            return 200, {"value": [{"id": f"{path}/{name}", "name": name} for name in self.orphans]}
        if path.endswith("/publicIPAddresses"):
            return 200, {"value": []}
        if method == "DELETE":
            self.orphans.discard(path.split("/")[-1])
            return 200, {}
        if match := re.search(r"/networkInterfaces/([^/]+)$", path):
            number = list(self.machines).index(match[1].removesuffix("-nic"))
            return 200, {
                "id": path,
                "name": match[1],
                "properties": {
                    "ipConfigurations": [
                        {
                            "properties": {
                                "privateIPAddress": f"10.9.0.{4 + number}",
                                "publicIPAddress": {"id": "/x/publicIPAddresses/a"},
                            }
                        }
                    ]
                },
            }
        if "/publicIPAddresses/" in path:
            return 200, {"id": path, "name": "a", "properties": {"ipAddress": "20.0.0.4"}}
        if path.endswith("/virtualMachines"):
            return 200, {
                "value": [
                    {
                        "id": f"{path}/{name}",
                        "name": name,
                        "location": "x",
                        "tags": each["vmTags"],
                        "properties": {
                            "networkProfile": {"networkInterfaces": [{"id": f"/x/networkInterfaces/{name}-nic"}]}
                        },
                    }
                    for name, each in self.machines.items()
                ]
            }
        if path.endswith("/instanceView"):
            return 200, {"statuses": [{"code": "PowerState/running"}]}
        return 404, {"error": {"code": "ResourceNotFound", "message": path}}


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Azure:
    for module in ("azure.identity", "azure.mgmt.compute", "azure.mgmt.network", "azure.mgmt.resource", "msrestazure"):
        pytest.importorskip(module, reason="needs the azure packages that cluster/README.md names")
    import azure.identity
    import ray.autoscaler._private._azure.node_provider as provider
    import requests
    import urllib3
    from azure.core.credentials import AccessToken

    cloud = Azure()

    def request(self: Any, method: str, url: str, data: Any = None, **_: Any) -> requests.Response:
        status, answer = cloud.answer(method, url, json.loads(data) if data else None)
        response = requests.Response()
        response.status_code, response.url, response.encoding = status, url, "utf-8"
        response.headers["content-type"] = "application/json"
        response.raw = urllib3.HTTPResponse(
            body=io.BytesIO(json.dumps(answer).encode()),
            headers=dict(response.headers),
            status=status,
            preload_content=False,
        )
        response.request = requests.Request(method, url).prepare()
        return response

    monkeypatch.setattr(requests.sessions.Session, "request", request)
    for credential in (azure.identity.AzureCliCredential, azure.identity.DefaultAzureCredential):
        monkeypatch.setattr(
            credential, "get_token", lambda self, *_, **__: AccessToken("none", int(time.time()) + 9999)
        )
        if hasattr(credential, "get_token_info"):
            monkeypatch.delattr(credential, "get_token_info")
    monkeypatch.setattr(provider, "get_cloud_from_metadata_requests", lambda: "none", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)
    (tmp_path / ".ssh").mkdir()
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "rsa", "-N", "", "-f", str(tmp_path / ".ssh/palimpsest_azure")], check=True
    )
    return cloud


QUIET = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::ResourceWarning",
    "ignore::SyntaxWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::UserWarning",
)


@QUIET
def test_azure_launches_every_type(azure: Azure):
    config, provider = launch_all(load("azure.yaml"))
    by_type = {each["vmTags"]["ray-user-node-type"]: each for each in azure.machines.values()}
    assert by_type.keys() == load("azure.yaml")["available_node_types"].keys()
    assert {name: each["vmSize"] for name, each in by_type.items()} == {
        "head": "Standard_D4s_v5",
        "a10": "Standard_NV36ads_A10_v5",
        "a100": "Standard_NC24ads_A100_v4",
        "h100": "Standard_NC40ads_H100_v5",
        "a100-x4": "Standard_NC96ads_A100_v4",
        "a100-ondemand": "Standard_NC24ads_A100_v4",
    }
    for name, each in by_type.items():
        assert (each.get("priority") == "Spot") == (name not in ("head", "a100-ondemand"))
        assert each["adminUsername"] == "ubuntu" and each["imageSku"] == "2204" and each["osDiskSize"] == 200
    assert len(provider.non_terminated_nodes({})) == len(by_type)


@QUIET
def test_azure_sells_on_demand_where_spot_is_sold_out(azure: Azure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from azure.core.exceptions import HttpResponseError

    config, plain = launch_all(load("azure.yaml"))
    azure.machines.clear()
    provider = as_on_the_head(config, tmp_path, monkeypatch)

    def seen() -> list[tuple[str, str]]:
        return sorted((each.get("priority", "Regular"), each["vmTags"]["palimpsest-market"])
                      for each in azure.machines.values())

    launch(provider, config, "a100")
    assert seen() == [("Spot", "spot")]
    azure.sold_out = "SkuNotAvailable"
    with pytest.raises(HttpResponseError):
        launch(plain, config, "a100")
    azure.orphans.clear()
    launch(provider, config, "a100", 2)
    assert seen() == [("Regular", "on-demand"), ("Regular", "on-demand"), ("Spot", "spot")]
    assert not azure.orphans, "what the failed deployments had made is gone"
    azure.sold_out = "AuthorizationFailed"
    with pytest.raises(HttpResponseError, match="AuthorizationFailed"):
        launch(provider, config, "a100")
    assert len(azure.machines) == 3 and not azure.orphans


@QUIET
@pytest.mark.parametrize("wrong", [{"imageSku": 2204}, {"vmsize": "Standard_NC24ads_A100_v4"}, {"osDiskSize": "200"}])
def test_azure_refuses(azure: Azure, wrong: dict[str, Any]):
    config = load("azure.yaml")
    config["available_node_types"]["a100"]["node_config"]["azure_arm_parameters"] |= wrong
    with pytest.raises(Exception, match="no such template parameter|is no (string|int)"):
        launch_all(config)
