"""cluster/azure.yaml: Ray's own code for Azure, against an HTTP API that this process plays.

Every deployment's parameters are checked against the template that Ray sends along.
"""

# pyright: reportMissingImports=false
import io
import json
import re
import subprocess
import time
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from launching import ROOT, as_on_the_head, launch, launch_all, load

QUIET = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::ResourceWarning",
    "ignore::SyntaxWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::UserWarning",
)


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
