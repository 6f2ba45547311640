"""cluster/gpu.yaml and cluster/aws.yaml against a pretend AWS: moto, for EC2, IAM, S3, EFS, RDS and CloudFormation.

    the stack            made, its ids written into a copy of gpu.yaml by its own `Fill` command
    bootstrap, launch    Ray's own AWS code: key pair, group, roles, head, workers, spot, volumes, tags, image
    spot sold out        cluster/spot.py takes the same machine at the full price, and only then
    the end              no machine is left, and removing the stack leaves results alone

Run as a program it is that server:   python tests/test_cluster_aws.py PORT FILE
(no spot while FILE exists; it holds EC2's word for that, or a subnet and its word on each line)
"""

# pyright: reportMissingImports=false
import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_cluster_clouds import launch

ROOT = Path(__file__).resolve().parent.parent
STACK = ROOT / "cluster" / "aws.yaml"
REGION = "us-west-2"
SSH_FROM = "198.51.100.0/24"
IMAGES = {"/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id": "ami-12c6146b"}
ROLES = [f"palimpsest-head-{REGION}", f"palimpsest-worker-{REGION}"]
ACCOUNT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": REGION}


def serve(port: int, sold_out: Path, host: str = "127.0.0.1") -> None:
    """moto, with a spot market that has nothing while `sold_out` exists."""
    from moto.cloudformation.parsing import ResourceMap
    from moto.ec2.exceptions import EC2ClientError
    from moto.ec2.models.instances import InstanceBackend
    from moto.server import main

    launch = InstanceBackend.run_instances

    def run_instances(self: Any, *arguments: Any, **options: Any) -> Any:
        if sold_out.exists() and "spot" in repr(options):
            said = [line.split() for line in sold_out.read_text().splitlines()] or [["InsufficientInstanceCapacity"]]
            word = next(line[-1] for line in said if len(line) == 1 or line[0] == options["subnet_id"])
            raise EC2ClientError(word, "There is no Spot capacity.")
        return launch(self, *arguments, **options)

    InstanceBackend.run_instances = run_instances  # type: ignore[method-assign]
    keeps_secrets()
    # moto has a copy of AWS's public parameters, but not of the deep learning images'.
    ResourceMap.parse_ssm_parameter = lambda self, name, kind: IMAGES[name]  # type: ignore[method-assign]
    main(["-H", host, "-p", str(port)])


def keeps_secrets() -> None:
    """Teach moto's CloudFormation to make a secret, which its Secrets Manager can keep."""
    from moto.cloudformation.parsing import get_model_map
    from moto.core.common_models import CloudFormationModel
    from moto.secretsmanager.models import secretsmanager_backends

    class Secret(CloudFormationModel):
        __module__ = "moto.secretsmanager.models"  # by which moto files its classes

        def __init__(self, arn: str):
            self.physical_resource_id = arn

        @staticmethod
        def cloudformation_name_type() -> str:
            return "Name"

        @staticmethod
        def cloudformation_type() -> str:
            return "AWS::SecretsManager::Secret"

        @classmethod
        def create_from_cloudformation_json(  # type: ignore[override]
            cls, resource_name: str, cloudformation_json: Any, account_id: str, region_name: str, **_: Any
        ) -> "Secret":
            backend, asked = secretsmanager_backends[account_id][region_name], cloudformation_json["Properties"]
            made = asked["GenerateSecretString"]
            password = backend.get_random_password(
                password_length=made["PasswordLength"], exclude_characters="", exclude_numbers=False,
                exclude_punctuation=made["ExcludePunctuation"], exclude_uppercase=False, exclude_lowercase=False,
                include_space=False, require_each_included_type=True)
            said = json.loads(made["SecretStringTemplate"]) | {
                made["GenerateStringKey"]: json.loads(password)["RandomPassword"]}
            answer = backend.create_secret(resource_name, json.dumps(said), None, None, None, None, None, [], False)
            return cls(json.loads(answer)["ARN"])

    assert get_model_map()["AWS::SecretsManager::Secret"] is Secret


class Aws:
    """The pretend account, from the side of the test."""

    def __init__(self, url: str, sold_out: Path):
        self.url, self.sold_out = url, sold_out

    def client(self, service: str) -> Any:
        import boto3

        return boto3.client(
            service, region_name=REGION, endpoint_url=self.url, aws_access_key_id="test", aws_secret_access_key="test"
        )

    def machines(self, *states: str) -> list[dict[str, Any]]:
        """Instances in these states (all that are not ended), oldest first."""
        found = [
            machine
            for group in self.client("ec2").describe_instances()["Reservations"]
            for machine in group["Instances"]
        ]
        wanted = states or ("pending", "running", "stopping", "stopped")
        return sorted((each for each in found if each["State"]["Name"] in wanted), key=lambda each: each["LaunchTime"])

    def make_stack(self, ssh_from: str = SSH_FROM, name: str = "palimpsest", **existing: str) -> str:
        """The stack as README makes it; its Fill command."""
        ec2, formation = self.client("ec2"), self.client("cloudformation")
        subnets = ec2.describe_subnets(Filters=[{"Name": "default-for-az", "Values": ["true"]}])["Subnets"]
        subnets = sorted(subnets, key=lambda subnet: subnet["AvailabilityZone"])[:3]
        values = {
            "SshFrom": ssh_from,
            "Vpc": subnets[0]["VpcId"],
            "Subnets": ",".join(subnet["SubnetId"] for subnet in subnets),
        } | existing
        formation.create_stack(
            StackName=name,
            TemplateBody=STACK.read_text(),
            Capabilities=["CAPABILITY_NAMED_IAM"],
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in values.items()],
        )
        stack = formation.describe_stacks(StackName=name)["Stacks"][0]
        assert stack["StackStatus"] == "CREATE_COMPLETE", stack
        return next(output["OutputValue"] for output in stack["Outputs"] if output["OutputKey"] == "Fill")


def fill(command: str, folder: Path) -> Path:
    """A copy of gpu.yaml with a stack's ids in it."""
    (folder / "cluster").mkdir(parents=True, exist_ok=True)
    path = folder / "cluster" / "gpu.yaml"
    path.write_text((ROOT / "cluster" / "gpu.yaml").read_text())
    subprocess.run(["sh", "-c", command], cwd=folder, check=True)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    pytest.importorskip("moto", reason="needs moto[server,cloudformation,ec2,efs,iam,s3,ssm]")
    pytest.importorskip("boto3", reason="needs boto3")
    folder = tmp_path_factory.mktemp("aws")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, str(port), str(folder / "sold-out")], stdout=log, stderr=log
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=60).close()
                break
            except OSError:
                time.sleep(0.2)
        yield Aws(url, folder / "sold-out")
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def aws(server: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Aws:
    """The account, empty; a home of its own, so that keys go there."""
    urllib.request.urlopen(urllib.request.Request(f"{server.url}/moto-api/reset", method="POST"), timeout=60).close()
    server.sold_out.unlink(missing_ok=True)
    for name, value in (ACCOUNT | {"AWS_ENDPOINT_URL": server.url, "HOME": str(tmp_path / "home")}).items():
        monkeypatch.setenv(name, value)
    (tmp_path / "home").mkdir()
    import ray.autoscaler._private.aws.config as config
    import ray.autoscaler._private.aws.utils as utils

    for cached in (config._get_subnets_or_die, utils.resource_cache, utils.client_cache):
        cached.cache_clear()  # Ray keeps its connections to an account for the life of a process
    return server


def bootstrap(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], Any]:
    """What `ray up` does before it launches anything; the config and Ray's provider."""
    from ray.autoscaler._private.commands import _bootstrap_config
    from ray.autoscaler._private.providers import _get_node_provider

    monkeypatch.chdir(ROOT)
    config = _bootstrap_config(yaml.safe_load(path.read_text()), no_config_cache=True)
    return config, _get_node_provider(config["provider"], config["cluster_name"], use_cache=False)


def words(machine: dict[str, Any]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in machine["Tags"]}


def test_the_stack_admits_ssh_from_one_range_and_nothing_else(aws: Aws):
    aws.make_stack()
    groups = aws.client("ec2").describe_security_groups(Filters=[{"Name": "tag:project", "Values": ["palimpsest"]}])
    (group,) = groups["SecurityGroups"]
    outside = [
        (rule["FromPort"], rule["ToPort"], rule["IpProtocol"], [each["CidrIp"] for each in rule["IpRanges"]])
        for rule in group["IpPermissions"]
        if rule["IpRanges"] or rule.get("Ipv6Ranges")
    ]
    assert outside == [(22, 22, "tcp", [SSH_FROM])]
    inside = [rule for rule in group["IpPermissions"] if rule["UserIdGroupPairs"]]
    assert [pair["GroupId"] for rule in inside for pair in rule["UserIdGroupPairs"]] == [group["GroupId"]]


@pytest.mark.parametrize("everybody", ["0.0.0.0/0", "0.0.0.0/1", "10.0.0.0/7", "198.51.100.7"])
def test_the_stack_refuses_everybody(everybody: str):
    parameters = yaml.load(STACK.read_text(), Loader=_plain())["Parameters"]
    assert not re.fullmatch(parameters["SshFrom"]["AllowedPattern"], everybody)
    assert re.fullmatch(parameters["SshFrom"]["AllowedPattern"], SSH_FROM)


def _plain() -> type[yaml.SafeLoader]:
    """A loader that takes CloudFormation's !Ref and !Sub for plain values."""

    class Plain(yaml.SafeLoader):
        pass

    def value(loader: Any, tag: str, node: Any) -> Any:
        return loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else loader.construct_scalar(node)

    Plain.add_multi_constructor("!", value)
    return Plain


def test_the_stack_is_good_cloudformation():
    """cfn-lint knows AWS's own schemas: types, properties, references, values."""
    lint = pytest.importorskip("cfnlint.api", reason="needs cfn-lint (it comes with moto[cloudformation])")
    from cfnlint.config import ManualArgs

    found = lint.lint(STACK.read_text(), config=ManualArgs(regions=[REGION]))
    assert not found, "\n".join(f"{each.rule.id} {each.linenumber}: {each.message}" for each in found)
    assert "&" not in STACK.read_text().replace("&&", ""), "CloudFormation takes no YAML aliases"
    broken = STACK.read_text().replace("ThroughputMode: elastic", "ThroughputMode: fast")
    assert lint.lint(broken, config=ManualArgs(regions=[REGION])), "the check can fail"


def test_roles_can_do_little(aws: Aws):
    aws.make_stack()
    iam = aws.client("iam")
    assert {role["RoleName"] for role in iam.list_roles()["Roles"]} == set(ROLES)
    for role in ROLES:
        assert not iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"], "nothing of AWS's *FullAccess"
    autoscaler = iam.get_role_policy(RoleName=ROLES[0], PolicyName="autoscaler")["PolicyDocument"]
    autoscaler = yaml.safe_load(autoscaler) if isinstance(autoscaler, str) else autoscaler  # moto: as text
    passing = [rule for rule in autoscaler["Statement"] if rule["Action"] == "iam:PassRole"]
    assert [rule["Resource"] for rule in passing] == [iam.get_role(RoleName=ROLES[1])["Role"]["Arn"]]
    making = [rule for rule in autoscaler["Statement"] if "iam:CreateServiceLinkedRole" in rule["Action"]]
    assert [rule["Condition"] for rule in making] == [{"StringEquals": {"iam:AWSServiceName": "spot.amazonaws.com"}}], (
        "an account's first spot machine needs AWS's own role for it, and no other is made"
    )
    ending = [rule for rule in autoscaler["Statement"] if rule["Action"] == ["ec2:TerminateInstances"]]
    assert ending[0]["Condition"] == {"StringEquals": {"ec2:ResourceTag/project": "palimpsest"}}


def test_bucket_is_private_and_the_stacks(aws: Aws):
    command = aws.make_stack()
    (bucket,) = aws.client("s3").list_buckets()["Buckets"]
    assert f"s3://{bucket['Name']}" in command
    properties = yaml.load(STACK.read_text(), Loader=_plain())["Resources"]["Bucket"]["Properties"]
    assert all(properties["PublicAccessBlockConfiguration"].values())  # moto does not apply this part
    assert len(properties["PublicAccessBlockConfiguration"]) == 4


def test_fill_leaves_no_placeholder(aws: Aws, tmp_path: Path):
    path = fill(aws.make_stack(), tmp_path)
    filled, raw = path.read_text(), (ROOT / "cluster" / "gpu.yaml").read_text()
    for placeholder in ("ami-0000", "sg-0000", "subnet-0000", "fs-0000", "palimpsest-0000"):
        assert placeholder in raw and placeholder not in filled
    assert yaml.safe_load(filled).keys() == yaml.safe_load(raw).keys()
    files = aws.client("efs").describe_file_systems()["FileSystems"]
    assert f"NFS={files[0]['FileSystemId']}.efs.{REGION}.amazonaws.com:/ " in filled
    again = filled
    subprocess.run(["sh", "-c", aws_fill(aws)], cwd=tmp_path, check=True)
    assert path.read_text() == again, "filling twice is filling once"


def aws_fill(aws: Aws) -> str:
    outputs = aws.client("cloudformation").describe_stacks(StackName="palimpsest")["Stacks"][0]["Outputs"]
    return outputs[0]["OutputValue"]


def test_bootstrap_launch_and_end(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Everything but SSH: what Ray makes in the account out of gpu.yaml, and that nothing of it stays."""
    path = fill(aws.make_stack(), tmp_path)
    ec2 = aws.client("ec2")
    disks = [
        disk
        for each in yaml.safe_load(path.read_text())["available_node_types"].values()
        for disk in each["node_config"]["BlockDeviceMappings"]
    ]
    assert all(disk["Ebs"]["DeleteOnTermination"] for disk in disks)
    groups = len(ec2.describe_security_groups()["SecurityGroups"])
    config, provider = bootstrap(path, monkeypatch)
    assert len(ec2.describe_security_groups()["SecurityGroups"]) == groups, "Ray makes no group of its own, open to all"
    assert len(aws.client("iam").list_roles()["Roles"]) == 2, "nor a role"
    key = Path(config["auth"]["ssh_private_key"])
    assert key.parent == tmp_path / "home" / ".ssh" and stat.S_IMODE(key.stat().st_mode) == 0o600

    launch(provider, config, "head")
    launch(provider, config, "l40s", 2)
    launch(provider, config, "h100-x8")
    machines = aws.machines()
    stack = yaml.safe_load(path.read_text())["available_node_types"]["head"]["node_config"]
    by_type = {
        name: [each for each in machines if words(each)["ray-user-node-type"] == name]
        for name in config["available_node_types"]
    }
    assert {name: [each["InstanceType"] for each in some] for name, some in by_type.items() if some} == {
        "head": ["m7i.xlarge"],
        "l40s": ["g6e.2xlarge"] * len(by_type["l40s"]),
        "h100-x8": ["p5.48xlarge"],
    }
    assert by_type["l40s"]
    for machine in machines:
        name = words(machine)["ray-user-node-type"]
        assert machine.get("InstanceLifecycle", "on-demand") == ("on-demand" if name == "head" else "spot")
        assert machine["ImageId"] == stack["ImageId"]
        assert [group["GroupId"] for group in machine["SecurityGroups"]] == stack["SecurityGroupIds"]
        assert machine["SubnetId"] == stack["SubnetIds"][0]
        assert machine["IamInstanceProfile"]["Arn"].endswith(ROLES[name != "head"])
        ending = ec2.describe_instance_attribute(
            InstanceId=machine["InstanceId"], Attribute="instanceInitiatedShutdownBehavior"
        )["InstanceInitiatedShutdownBehavior"]["Value"]
        assert ending == ("stop" if name == "head" else "terminate"), "what the watchdog's shutdown comes to"
        assert machine["MetadataOptions"]["HttpTokens"] == "required"
        assert words(machine)["project"] == "palimpsest" and words(machine)["ray-cluster-name"] == "palimpsest"
        assert machine["KeyName"] in [pair["KeyName"] for pair in ec2.describe_key_pairs()["KeyPairs"]]
    volumes = ec2.describe_volumes()["Volumes"]
    assert len(volumes) == len(machines)
    for volume in volumes:
        assert (volume["Size"], volume["VolumeType"], volume["Encrypted"]) == (200, "gp3", True)

    assert len(provider.non_terminated_nodes({"ray-node-type": "worker"})) == len(machines) - 1
    provider.terminate_nodes(provider.non_terminated_nodes({}))
    assert not provider.non_terminated_nodes({})
    assert not aws.machines() and not ec2.describe_volumes()["Volumes"]


def spot_first(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The provider that the autoscaler on the head uses, made the way the head makes it."""
    from ray.autoscaler._private.providers import _get_node_provider

    path = tmp_path / "ray_bootstrap_config.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    subprocess.run([sys.executable, str(ROOT / "cluster" / "spot.py"), str(path)], check=True)
    monkeypatch.syspath_prepend(str(ROOT))
    swapped = yaml.safe_load(path.read_text())
    assert swapped | {"provider": config["provider"]} == json.loads(json.dumps(config)), "only the provider differs"
    return _get_node_provider(swapped["provider"], swapped["cluster_name"], use_cache=False)


def test_spot_sold_out_means_on_demand(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config, plain = bootstrap(fill(aws.make_stack(), tmp_path), monkeypatch)
    provider = spot_first(config, tmp_path, monkeypatch)
    from ray.autoscaler.node_launch_exception import NodeLaunchException

    launch(provider, config, "l40s")
    aws.sold_out.write_text("InsufficientInstanceCapacity")
    with pytest.raises(NodeLaunchException):
        launch(plain, config, "l40s")  # Ray alone gives up, and would ask the same again for ever
    launch(provider, config, "l40s")
    aws.sold_out.unlink()
    launch(provider, config, "l40s")
    seen = [
        (each["InstanceType"], each.get("InstanceLifecycle", "on-demand"), words(each)["palimpsest-market"])
        for each in aws.machines()
    ]
    assert sorted(seen) == [("g6e.2xlarge", "on-demand", "on-demand"), *[("g6e.2xlarge", "spot", "spot")] * 2]

    # Three zones, asked in turn, five times: the second has the last word, and does not offer the type.
    zones = config["available_node_types"]["l40s"]["node_config"]["SubnetIds"]
    words_of = zip(zones, ("InsufficientInstanceCapacity", "Unsupported", "InsufficientInstanceCapacity"), strict=True)
    aws.sold_out.write_text("\n".join(f"{zone} {word}" for zone, word in words_of))
    with pytest.raises(NodeLaunchException) as last:
        launch(plain, config, "l40s")
    assert last.value.category == "Unsupported", "Ray tells the last zone's alone"
    launch(provider, config, "l40s")
    assert [words(each)["palimpsest-market"] for each in aws.machines()].count("on-demand") == 2

    aws.sold_out.write_text("UnauthorizedOperation")  # not about capacity: the full price would not help
    with pytest.raises(NodeLaunchException):
        launch(provider, config, "l40s")
    assert len(aws.machines()) == 4


def test_a_database_outside_the_head_is_made_if_it_is_asked_for(aws: Aws, tmp_path: Path):
    """In the machines' own group, reached from nowhere else; its address in gpu.yaml, its password in no file."""
    without = fill(aws.make_stack(), tmp_path).read_text()
    rds, iam = aws.client("rds"), aws.client("iam")
    assert not rds.describe_db_instances()["DBInstances"] and "BACKEND" not in without, "it costs, so it is asked for"
    assert not aws.client("secretsmanager").list_secrets()["SecretList"]
    aws.client("cloudformation").delete_stack(StackName="palimpsest")

    path = fill(command := aws.make_stack(Database="db.t4g.micro"), tmp_path)
    (database,) = rds.describe_db_instances()["DBInstances"]
    (group,) = yaml.safe_load(path.read_text())["available_node_types"]["head"]["node_config"]["SecurityGroupIds"]
    properties = yaml.load(STACK.read_text(), Loader=_plain())["Resources"]["Runs"]["Properties"]
    assert properties["VPCSecurityGroups"] == ["Access.GroupId"] and group  # moto's CloudFormation drops this one
    assert (database["Engine"], database["EngineVersion"], database["DBInstanceClass"]) == (
        "postgres", "16.15", "db.t4g.micro")
    assert not database["PubliclyAccessible"] and database["StorageEncrypted"]
    assert database["BackupRetentionPeriod"] == 7
    assert len(database["DBSubnetGroup"]["Subnets"]) == 3
    (secret,) = aws.client("secretsmanager").list_secrets()["SecretList"]
    password = json.loads(aws.client("secretsmanager").get_secret_value(SecretId=secret["ARN"])["SecretString"])
    assert password["username"] == "palimpsest" and re.fullmatch(r"\w{40}", password["password"])
    (up,) = yaml.safe_load(path.read_text())["head_setup_commands"]
    backend, where, rest = up.split(" ", 2)
    address = database["Endpoint"]["Address"]
    assert backend == f"BACKEND=postgresql+psycopg2://palimpsest@{address}:5432/mlflow?sslmode=require"
    assert where == f"SECRET={secret['ARN']}"
    assert re.fullmatch("ARTIFACTS=s3://[a-z0-9-]+/mlflow bash ~/palimpsest/cluster/mlflow/up.sh", rest)
    assert password["password"] not in path.read_text() + command
    assert iam.list_role_policies(RoleName=ROLES[0])["PolicyNames"].count("password") == 1
    assert "password" not in iam.list_role_policies(RoleName=ROLES[1])["PolicyNames"], "workers have no business there"
    document = iam.get_role_policy(RoleName=ROLES[0], PolicyName="password")["PolicyDocument"]
    (rule,) = (yaml.safe_load(document) if isinstance(document, str) else document)["Statement"]
    assert (rule["Action"], rule["Resource"]) == ("secretsmanager:GetSecretValue", secret["ARN"])

    filled = path.read_text()
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    assert path.read_text() == filled, "filling twice is filling once"
    aws.client("cloudformation").delete_stack(StackName="palimpsest")
    subprocess.run(["sh", "-c", aws.make_stack()], cwd=tmp_path, check=True)
    assert "BACKEND" not in path.read_text() and "- ARTIFACTS=s3://" in path.read_text(), "and taken away again"


@pytest.mark.parametrize("said", ["", "db.t4g.micro", "db.m7g.large"])
def test_the_stack_takes_classes_of_databases(said: str):
    pattern = yaml.load(STACK.read_text(), Loader=_plain())["Parameters"]["Database"]["AllowedPattern"]
    assert re.fullmatch(pattern, said) and not re.fullmatch(pattern, "yes")


def test_removing_the_stack_keeps_results(aws: Aws):
    aws.make_stack()
    text = STACK.read_text()
    for kind in ("AWS::S3::Bucket", "AWS::EFS::FileSystem"):
        assert re.search(f"Type: {kind}\n    Condition: \\w+\n    DeletionPolicy: Retain", text)
    assert re.search("Type: AWS::RDS::DBInstance\n    Condition: \\w+\n    DeletionPolicy: Snapshot", text)
    aws.client("cloudformation").delete_stack(StackName="palimpsest")
    assert not aws.client("iam").list_instance_profiles()["InstanceProfiles"]
    tagged = aws.client("ec2").describe_security_groups(Filters=[{"Name": "tag:project", "Values": ["palimpsest"]}])
    assert not tagged["SecurityGroups"]


def test_the_stack_is_made_again_beside_what_the_first_one_left(aws: Aws, tmp_path: Path):
    """Deleted and made again, with new storage or on with the old; and a second one beside it."""

    def filled(command: str) -> tuple[str, str]:
        text = fill(command, tmp_path).read_text()
        return re.findall("s3://([a-z0-9.-]+)/stages", text)[0], re.findall(r"NFS=(fs-\w+)", text)[0]

    first = filled(aws.make_stack())
    aws.client("cloudformation").delete_stack(StackName="palimpsest")
    second = filled(aws.make_stack())
    assert not set(first) & set(second), "what the first one left is not in the way"
    aws.client("cloudformation").delete_stack(StackName="palimpsest")
    assert filled(aws.make_stack(ExistingBucket=first[0], ExistingResults=first[1])) == first
    assert len(aws.client("s3").list_buckets()["Buckets"]) == len(
        aws.client("efs").describe_file_systems()["FileSystems"]
    ) == 2
    policy = aws.client("iam").get_role_policy(RoleName=ROLES[1], PolicyName="bucket")["PolicyDocument"]
    assert f"arn:aws:s3:::{first[0]}/*" in json.dumps(policy)
    other = fill(aws.make_stack(name="other"), tmp_path).read_text()
    assert f"Name: other-head-{REGION}" in other and f"Name: other-worker-{REGION}" in other


def test_launch_fields_are_the_apis_own():
    """botocore's description of RunInstances knows every field of every type."""
    session = pytest.importorskip("botocore.session", reason="needs botocore")
    from botocore.validate import ParamValidator

    shape = session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    types = yaml.safe_load((ROOT / "cluster" / "gpu.yaml").read_text())["available_node_types"]
    for name, each in types.items():
        node = {key: value for key, value in each["node_config"].items() if key != "SubnetIds"}  # Ray's own
        report = ParamValidator().validate(node | {"MinCount": 1, "MaxCount": 1}, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"
    assert ParamValidator().validate({"MinCount": 1, "MaxCount": 1, "ImageID": "x"}, shape).has_errors()


if __name__ == "__main__":
    os.environ["MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION"] = "true"  # a misspelt type is refused, as AWS does
    serve(int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
