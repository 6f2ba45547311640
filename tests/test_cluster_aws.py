"""cluster/gpu.yaml and cluster/aws.yaml against a pretend AWS: moto, for EC2, IAM, S3, EFS, RDS and CloudFormation.

    the stack            made, its ids written into a copy of gpu.yaml by its own `Fill` command
    bootstrap, launch    Ray's own AWS code: key pair, group, roles, head, workers, spot, volumes, tags, image
    spot sold out        cluster/spot.py takes the same machine at the full price, and only then
    the end              no machine is left, and removing the stack leaves results alone
"""

# pyright: reportMissingImports=false
import json
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from launching import as_on_the_head, launch
from pretend_aws import REGION, ROOT, SSH_FROM, STACK, Aws, fill

pytest_plugins = ["pretend_aws"]                   # its fixtures
ROLES = [f"palimpsest-head-{REGION}", f"palimpsest-worker-{REGION}"]


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


def test_spot_sold_out_means_on_demand(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config, plain = bootstrap(fill(aws.make_stack(), tmp_path), monkeypatch)
    provider = as_on_the_head(config, tmp_path, monkeypatch)
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
