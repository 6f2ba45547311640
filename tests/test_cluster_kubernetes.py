"""cluster/kuberay/: every manifest against Kubernetes' schemas, KubeRay's rules, and Ray's own reading of it."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "cluster" / "kuberay"
VERSION = "1.33"

# What ray.io/v1 knows of the levels that our manifests use (CRDs of KubeRay 1.6 and 1.7).  The API server drops
# a misspelt key with a warning; here it is refused.
CLUSTER = {
    "rayVersion",
    "authOptions",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "headGroupSpec",
    "workerGroupSpecs",
    "suspend",
    "managedBy",
    "headServiceAnnotations",
    "gcsFaultToleranceOptions",
    "upgradeStrategy",
}
JOB = {
    "entrypoint",
    "submissionMode",
    "shutdownAfterJobFinishes",
    "ttlSecondsAfterFinished",
    "activeDeadlineSeconds",
    "backoffLimit",
    "submitterPodTemplate",
    "rayClusterSpec",
    "runtimeEnvYAML",
    "entrypointNumCpus",
    "entrypointResources",
    "jobId",
    "metadata",
    "clusterSelector",
    "deletionStrategy",
    "suspend",
    "managedBy",
    "preRunningDeadlineSeconds",
    "submitterConfig",
}
HEAD = {"rayStartParams", "template", "serviceType", "enableIngress", "headService", "resources", "labels"}
GROUP = {
    "groupName",
    "replicas",
    "minReplicas",
    "maxReplicas",
    "rayStartParams",
    "template",
    "suspend",
    "numOfHosts",
    "idleTimeoutSeconds",
    "scaleStrategy",
    "resources",
    "labels",
    "priority",
}
AUTOSCALER = {
    "version",
    "idleTimeoutSeconds",
    "resources",
    "upscalingMode",
    "image",
    "imagePullPolicy",
    "env",
    "envFrom",
    "securityContext",
    "volumeMounts",
}


# What kueue.x-k8s.io/v1beta2 knows, level by level, of the kinds that kueue.yaml uses (Kueue 0.20, which serves nothing
# older), and what must be there; a level that is a list is one of its items.
KUEUE = {
    "ResourceFlavor": {"spec": {"nodeLabels", "nodeTaints", "tolerations", "topologyName", "resourceWeights"}},
    "ClusterQueue": {
        "spec": {
            "resourceGroups",
            "cohortName",
            "queueingStrategy",
            "namespaceSelector",
            "flavorFungibility",
            "preemption",
            "admissionChecksStrategy",
            "stopPolicy",
            "fairSharing",
            "admissionScope",
            "concurrentAdmissionPolicy",
        },
        "spec.preemption": {"reclaimWithinCohort", "borrowWithinCohort", "withinClusterQueue"},
        "spec.namespaceSelector": {"matchLabels", "matchExpressions"},
        "spec.resourceGroups": {"coveredResources", "flavors"},
        "spec.resourceGroups.flavors": {"name", "resources"},
        "spec.resourceGroups.flavors.resources": {"name", "nominalQuota", "borrowingLimit", "lendingLimit"},
    },
    "LocalQueue": {"spec": {"clusterQueue", "stopPolicy", "fairSharing", "wallTimePolicy"}},
    "WorkloadPriorityClass": {"": {"apiVersion", "kind", "metadata", "value", "description"}},
}


def levels(value: Any, path: str) -> Iterator[dict[str, Any]]:
    """The mappings at a dotted path."""
    for part in filter(None, path.split(".")):
        inner = [each.get(part, {}) for each in (value if isinstance(value, list) else [value])]
        value = [each for some in inner for each in (some if isinstance(some, list) else [some])]
    yield from value if isinstance(value, list) else [value]


def kueue_refuses(each: dict[str, Any]) -> Iterator[str]:
    """What a Kueue of v1beta2 would not take of a document."""
    if each["apiVersion"] != "kueue.x-k8s.io/v1beta2":
        yield f"{each['apiVersion']} is not served"
    for path, known in KUEUE[each["kind"]].items():
        for level in levels(each, path):
            yield from (f"{each['kind']}: {path}: no {word}" for word in level.keys() - known)
    spec = each.get("spec", {})
    if each["kind"] == "ClusterQueue":
        if spec["queueingStrategy"] not in ("StrictFIFO", "BestEffortFIFO"):
            yield "queueingStrategy"
        if spec["preemption"]["withinClusterQueue"] not in ("Never", "LowerPriority", "LowerOrNewerEqualPriority"):
            yield "preemption.withinClusterQueue"
        for group in spec["resourceGroups"]:
            for flavor in group["flavors"]:
                if [each["name"] for each in flavor["resources"]] != group["coveredResources"]:
                    yield "a flavor lists every covered resource, in order"
    if each["kind"] == "WorkloadPriorityClass" and not isinstance(each["value"], int):
        yield "value: a whole number"
    if (each["kind"] == "LocalQueue") != ("namespace" in each["metadata"]):
        yield "only a LocalQueue stands in a namespace"


def documents() -> list[tuple[str, dict[str, Any]]]:
    return [(path.name, each) for path in sorted(HERE.glob("*.yaml")) for each in yaml.safe_load_all(path.read_text())]


def clusters() -> list[tuple[str, dict[str, Any]]]:
    found = [(name, each["spec"]) for name, each in documents() if each["kind"] in ("RayCluster", "RayJob")]
    return [(name, spec.get("rayClusterSpec", spec)) for name, spec in found]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template that is in any manifest."""

    def within(value: Any) -> Iterator[dict[str, Any]]:
        if isinstance(value, dict):
            if "containers" in value.get("spec", {}):
                yield value
            for each in value.values():
                yield from within(each)
        elif isinstance(value, list):
            for each in value:
                yield from within(each)

    for name, each in documents():
        for template in within(each):
            yield name, template


def test_every_kind_is_there():
    kinds = {each["kind"] for _, each in documents()}
    assert {
        "RayCluster",
        "RayJob",
        "CronJob",
        "StatefulSet",
        "Deployment",
        "Service",
        "PersistentVolumeClaim",
        "NetworkPolicy",
        "ClusterQueue",
        "LocalQueue",
    } <= kinds


def test_kueue_takes_what_is_its_own():
    found = [each for name, each in documents() if name == "kueue.yaml"]
    assert {each["kind"] for each in found} == KUEUE.keys()
    assert not [problem for each in found for problem in kueue_refuses(each)]
    (queue,) = [each for each in found if each["kind"] == "ClusterQueue"]
    flavors = {each["metadata"]["name"] for each in found if each["kind"] == "ResourceFlavor"}
    assert {flavor["name"] for group in queue["spec"]["resourceGroups"] for flavor in group["flavors"]} <= flavors
    (local,) = [each for each in found if each["kind"] == "LocalQueue"]
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    old = queue | {"apiVersion": "kueue.x-k8s.io/v1beta1", "spec": queue["spec"] | {"cohort": "ours"}}
    assert len([*kueue_refuses(old)]) == 2, "the check can fail"


def test_a_restore_forgets_the_drivers_marks():
    """As cluster/mlflow/restore.sh does: else what was recorded after the backup is never sent again."""
    (line,) = re.findall(r"delete from tags where key = 'journal'", (HERE / "postgres.yaml").read_text())
    assert line in (ROOT / "cluster/mlflow/restore.sh").read_text()


def test_kubernetes_takes_every_manifest():
    validate = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    for _, each in documents():
        if "." in each["apiVersion"].split("/")[0] and not each["apiVersion"].split("/")[0].endswith(".k8s.io"):
            continue  # ray.io: below
        if each["apiVersion"].startswith(("kueue", "kustomize")):
            continue  # kueue: above
        validate.validate(each, VERSION, strict=True)
    for name, template in pods():
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "x"} | template.get("metadata", {}),
            "spec": template["spec"],
        }
        try:
            validate.validate(pod, VERSION, strict=True)
        except validate.ValidationError as error:
            raise AssertionError(f"{name}: {error.message}") from None
    with pytest.raises(validate.ValidationError):  # the check can fail
        validate.validate(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "x"},
                "spec": {"containers": [{"name": "x", "image": "y", "resource": {}}]},
            },
            VERSION,
            strict=True,
        )


def test_ray_manifests_use_keys_that_kuberay_knows():
    for name, each in documents():
        if each["kind"] == "RayJob":
            assert each["spec"].keys() <= JOB, name
            assert each["spec"]["submissionMode"] in ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
    for name, spec in clusters():
        assert spec.keys() <= CLUSTER and spec["headGroupSpec"].keys() <= HEAD, name
        assert spec.get("autoscalerOptions", {}).keys() <= AUTOSCALER, name
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            assert all(isinstance(value, str) for value in group["rayStartParams"].values()), (
                "KubeRay takes strings only"
            )
        for group in spec["workerGroupSpecs"]:
            assert group.keys() <= GROUP, name
            assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", group["groupName"])
            assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] or group["maxReplicas"] == 0


@pytest.mark.parametrize(("name", "spec"), clusters())
def test_ray_reads_the_cluster_as_meant(name: str, spec: dict[str, Any]):
    """Ray's autoscaler derives its own config from the manifest: no trial on the head, GPUs as the pods have them."""
    reader = pytest.importorskip("ray.autoscaler._private.kuberay.autoscaling_config")
    from ray.autoscaler._private.util import validate_config

    config = reader._derive_autoscaling_config_from_ray_cr({"metadata": {"name": "x", "namespace": "y"}, "spec": spec})
    validate_config(config)
    types = config["available_node_types"]
    assert types.pop("headgroup" if "headgroup" in types else config["head_node_type"])["resources"].get("CPU", 0) == 0
    assert {group["groupName"] for group in spec["workerGroupSpecs"]} == set(types)
    for group in spec["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        assert types[group["groupName"]]["resources"]["GPU"] == int(container["resources"]["limits"]["nvidia.com/gpu"])
        assert types[group["groupName"]]["max_workers"] == group["maxReplicas"]


def test_version_is_the_installed_one():
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned is not None and all(spec["rayVersion"] == pinned[1] for _, spec in clusters())


def test_token_authentication_is_on_with_our_secret():
    made = set(re.findall(r"create secret generic (\S+)", (HERE / "secrets.sh").read_text()))
    for _, spec in clusters():
        assert spec["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    used = set(
        re.findall(
            r"secretKeyRef: \{name: ([\w-]+)|secretName: ([\w-]+)", "".join(p.read_text() for p in HERE.glob("*.yaml"))
        )
    )
    assert {name for pair in used for name in pair if name} <= made


def test_workers_grow_from_none_or_come_as_a_gang():
    by_name = dict(clusters())
    for name in ("raycluster.yaml", "rayjob.yaml"):
        spec = by_name[name]
        assert spec["enableInTreeAutoscaling"] and spec["autoscalerOptions"]["version"] == "v2"
        assert all(group["minReplicas"] == 0 for group in spec["workerGroupSpecs"])
        assert max(group["maxReplicas"] for group in spec["workerGroupSpecs"]) > 0
    gang = by_name["rayjob-gang.yaml"]
    assert not gang["enableInTreeAutoscaling"], "Kueue refuses a RayJob that scales"
    assert all(
        group["minReplicas"] == group["maxReplicas"] == group["replicas"] > 0 for group in gang["workerGroupSpecs"]
    )
    (job,) = [each for name, each in documents() if name == "rayjob-gang.yaml"]
    queues = {each["metadata"]["name"] for _, each in documents() if each["kind"] == "LocalQueue"}
    priorities = {each["metadata"]["name"] for _, each in documents() if each["kind"] == "WorkloadPriorityClass"}
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] in queues
    assert job["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] in priorities
    assert job["spec"]["shutdownAfterJobFinishes"], "Kueue asks for it"


def test_mounts_have_volumes_and_claims_exist():
    claims = {each["metadata"]["name"] for _, each in documents() if each["kind"] == "PersistentVolumeClaim"}
    for name, template in pods():
        spec = template["spec"]
        volumes = {volume["name"] for volume in spec.get("volumes", [])} | {"data"}  # data: the StatefulSet's own
        for container in spec["containers"] + spec.get("initContainers", []):
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes, name
        for volume in spec.get("volumes", []):
            if claim := volume.get("persistentVolumeClaim"):
                assert claim["claimName"] in claims


def test_pods_ask_for_what_they_may_use():
    for name, template in pods():
        for container in template["spec"]["containers"]:
            asked, most = container["resources"]["requests"], container["resources"]["limits"]
            assert {"cpu", "memory"} <= asked.keys() and "memory" in most, name
            assert asked.get("nvidia.com/gpu") == most.get("nvidia.com/gpu"), (
                "Kubernetes has no fractions of GPUs to lend"
            )
        assert template["spec"]["securityContext"]["runAsNonRoot"], name


def test_nothing_is_open_to_the_world():
    for name, each in documents():
        if each["kind"] == "Service":
            assert each["spec"].get("type", "ClusterIP") == "ClusterIP", name
        assert each["kind"] != "Ingress"
    for _, spec in clusters():
        assert spec["headGroupSpec"].get("serviceType", "ClusterIP") == "ClusterIP"
        assert not spec["headGroupSpec"].get("enableIngress")
    (policy,) = [each for _, each in documents() if each["kind"] == "NetworkPolicy"]
    assert policy["spec"]["podSelector"] == {} and policy["spec"]["policyTypes"] == ["Ingress"]
    assert all("ipBlock" not in source for rule in policy["spec"]["ingress"] for source in rule["from"])


def test_cron_jobs_neither_overlap_nor_wait_for_ever():
    for name, each in documents():
        if each["kind"] == "CronJob":
            spec = each["spec"]
            assert spec["concurrencyPolicy"] == "Forbid" and spec["timeZone"] and spec["startingDeadlineSeconds"] > 0, (
                name
            )
            assert spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] > 0
            assert re.fullmatch(r"[\d*/,-]+( [\d*/,-]+){4}", spec["schedule"])


def test_what_is_run_is_there():
    text = "".join(path.read_text() for path in HERE.glob("*.yaml"))
    for program in set(re.findall(r"(?:python|bash) ((?:studies|cluster)/\S+\.(?:py|sh))", text)):
        assert (ROOT / program).exists(), program
    images = set(re.findall(r"image: (\S+)", text))
    assert images and not any(image.endswith(":latest") or ":" not in image for image in images), "images are pinned"


def test_readmes_line_sets_every_image(tmp_path: Path):
    """One registry in all files, jobs too; without it a pod would wait for an image that nobody has."""
    (tmp_path / "cluster/kuberay").mkdir(parents=True)
    for path in HERE.glob("*.yaml"):
        (tmp_path / "cluster/kuberay" / path.name).write_text(path.read_text())
    (line,) = re.findall(r"(sed -i.before '\S+' cluster/kuberay/\*\.yaml)", (ROOT / "cluster/README.md").read_text())
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True)
    text = "".join(path.read_text() for path in (tmp_path / "cluster/kuberay").glob("*.yaml"))
    assert "REGISTRY/palimpsest:0.1.0" in text and "registry.example.com" not in text
    assert all("CHOOSE" in each for each in re.findall("image: REGISTRY.*", text))


def test_whoever_writes_into_the_claim_may():
    """A claim's files belong to a group, which a pod that is not root must be in."""
    for name, template in pods():
        spec = template["spec"]
        if any("persistentVolumeClaim" in volume for volume in spec.get("volumes", [])):
            assert spec["securityContext"]["fsGroup"] == 1000, name


@pytest.mark.parametrize("name", ["mlflow.yaml", "nightly.yaml", "postgres.yaml"])
def test_shell_inside_manifests_parses(name: str):
    found = 0
    for _, template in [each for each in pods() if each[0] == name]:
        for container in template["spec"]["containers"] + template["spec"].get("initContainers", []):
            for script in [part for part in container.get("command", []) if "\n" in part]:
                subprocess.run(["bash", "-n"], input=script, text=True, check=True)
                found += 1
    assert found


def test_the_servers_settings_are_an_ini_file(tmp_path: Path):
    """The printf in mlflow.yaml writes what MLflow reads."""
    import configparser

    ((_, template),) = [(name, each) for name, each in pods() if name == "mlflow.yaml"]
    script = template["spec"]["containers"][0]["command"][-1].split("exec mlflow")[0]
    subprocess.run(["sh", "-ec", script.replace("/tmp/auth.ini", str(tmp_path / "auth.ini"))], check=True)
    config = configparser.ConfigParser()
    config.read(tmp_path / "auth.ini")
    assert config["mlflow"]["database_uri"].endswith("@postgres/mlflow_auth")
    assert config["mlflow"]["authorization_function"] == "mlflow.server.auth:authenticate_request_basic_auth"
