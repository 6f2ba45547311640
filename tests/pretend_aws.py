"""A pretend AWS: moto, for EC2, IAM, S3, EFS, RDS and CloudFormation, with a spot market that can be sold out.

    server -> aws        the account, empty, as a test's fixture;  aws.make_stack() -> its Fill command -> fill(...)

Run as a program it is that server:   python tests/pretend_aws.py PORT FILE
(no spot while FILE exists; it holds EC2's word for that, or a subnet and its word on each line)
"""

# pyright: reportMissingImports=false
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
STACK = ROOT / "cluster" / "aws.yaml"
REGION = "us-west-2"
SSH_FROM = "198.51.100.0/24"
IMAGES = {"/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id": "ami-12c6146b"}
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


if __name__ == "__main__":
    os.environ["MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION"] = "true"  # a misspelt type is refused, as AWS does
    serve(int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
