"""The way to a cluster's head: SSH to it, and through that to the one port that is not open to anybody.

    cluster/gpu.yaml      the head that Ray's own code finds; a tunnel from a free port here to the dashboard there
    http://127.0.0.1:N    a way that somebody else holds open: kubectl port-forward, ray dashboard, ssh -L

Ray's token goes through it in a header, and is in no argument, file or message.  When this program ends, however it
ends, the tunnel's standard input closes, and with that the tunnel.

Nothing is made or changed in an account: the head is looked up, and so is the key with which it was launched, where
Ray's own way (its bootstrap) would make another.  A head's host key is taken at first sight and must stay what it was.
"""

import contextlib
import os
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from studies.engine.cluster import quiet
from studies.engine.cluster_file import ClusterFile, read
from studies.engine.study import BadInput

ANSWER = 30                             # seconds in which SSH, or the dashboard, must answer
KNOWN_HOSTS = "~/.palimpsest/known_hosts"
PACKAGES = {"aws": "boto3", "gcp": "google-api-python-client", "azure": "azure-mgmt-compute and its kin"}
HINTS = {"aws": "`aws sts get-caller-identity` must work here", "gcp": "`gcloud auth application-default login`",
         "azure": "`az login`"}


class Way:
    """An open way to a job server; closed by `close`."""

    def __init__(self, url: str, name: str, token: str):
        self.url, self.name, self.token = url, name, token

    @property
    def silence(self) -> str:
        """What to say when the dashboard does not answer."""
        return f"nothing answers at {self.url}: is the port forwarded, and is Ray running behind it?"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def mend(self) -> None:
        """After it broke: wait, and open it again where that is ours to do."""
        time.sleep(2)

    def close(self) -> None:
        """Nothing is held."""


class Tunnel(Way):
    """A way through SSH."""

    def __init__(self, file: ClusterFile, command: list[str], where: str, token: str, alias: str):
        self.alias = alias              # what its host key is filed under
        self.port = _free_port()        # the same whenever it is opened: who uses it keeps the URL
        super().__init__(f"http://127.0.0.1:{self.port}", f"{file.name} ({where})", token)
        self.file, self.command, self.where = file, command, where
        self.process = self.open()

    @property
    def silence(self) -> str:
        return (f"the head of {self.name} answers over SSH, and Ray's dashboard there does not: Ray has ended.  "
                f"`ray up {self.file.path}` starts it again, and the same study command continues")

    def open(self) -> subprocess.Popen:
        """BadInput: SSH does not get there."""
        try:
            process = subprocess.Popen(
                [*self.command[:1], "-T", "-L", f"127.0.0.1:{self.port}:127.0.0.1:{self.file.port}", *self.command[1:],
                 "echo open; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                start_new_session=True)          # Ctrl-C is ours
        except FileNotFoundError:
            raise BadInput("--on needs an SSH client, and there is no `ssh` on this machine") from None
        assert process.stdout is not None and process.stderr is not None
        ready, _, _ = select.select([process.stdout], [], [], 2 * ANSWER)
        if ready and process.stdout.readline().strip() == b"open":
            return process
        process.kill()
        said = process.communicate()[1].decode(errors="replace").strip().splitlines()
        if said and "host key verification failed" in said[-1].lower():
            raise BadInput(f"the head of {self.file.name} at {self.where} has another SSH host key than it had: it was "
                           f"set up anew, or is not the same.  If you know why: ssh-keygen -R {self.alias} "
                           f"-f {KNOWN_HOSTS}")
        raise BadInput(f"the head of {self.file.name} at {self.where} does not answer over SSH: "
                       f"{said[-1] if said else 'it says nothing'}.  Is it up?  `ray up {self.file.path}` starts it")

    def mend(self) -> None:
        super().mend()
        if self.process.poll() is not None:
            self.process.communicate()
            with contextlib.suppress(BadInput):          # who waits for us decides how long
                self.process = self.open()

    def close(self) -> None:
        try:
            self.process.communicate(timeout=3)         # closes its input, at which it ends
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()


@contextlib.contextmanager
def reach(on: str) -> Iterator[Way]:
    """The way to the cluster that `--on` names.   BadInput: there is none"""
    never_by_proxy()
    way = at(on) if "://" in on else through_ssh(read(on))
    try:
        yield way
    finally:
        way.close()


def place(on: str) -> str:
    """What a cluster is called in the names of folders here."""
    return "-".join(urlsplit(on).netloc.rpartition("@")[2].split(":")) if "://" in on else Path(on).stem


def at(url: str) -> Way:
    """A way that is open already.   BadInput: it would show the token to others"""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise BadInput("--on takes a cluster's file, or the URL of its dashboard with no password in it, such as "
                       "http://127.0.0.1:8265")
    if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise BadInput(f"--on {url}: over plain HTTP the token would be open to read; forward the port to this machine "
                       "(ray dashboard, kubectl port-forward, ssh -L) and name that")
    return Way(url.rstrip("/"), url, token(None))


def through_ssh(file: ClusterFile) -> Tunnel:
    """BadInput: no head, no credentials, no key, no SSH."""
    secret, head = token(file), find_head(file)
    with quiet(None):
        from ray.autoscaler._private.command_runner import SSHOptions

    auth, known = file.config["auth"], Path(KNOWN_HOSTS).expanduser()
    known.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    alias = f"{file.name}-{head.node}"          # a cloud gives old addresses to new machines
    options = SSHOptions(head.key, ProxyCommand=auth.get("ssh_proxy_command"), BatchMode="yes", LogLevel="ERROR",
                         StrictHostKeyChecking="accept-new", UserKnownHostsFile=str(known), HostKeyAlias=alias)
    command = ["ssh", *options.to_ssh_options_list(timeout=ANSWER), f"{auth['ssh_user']}@{head.address}"]
    return Tunnel(file, command, head.address, secret, alias)


@dataclass(frozen=True)
class Head:
    """A head that is up."""

    node: str                           # what its provider calls it
    address: str
    key: str | None                     # the file of the SSH key that it takes; None: whichever SSH finds


def find_head(file: ClusterFile) -> Head:
    """Where the head is, and the key to it.   BadInput: it is not up, or the key is not here"""
    kind, provider = str(file.provider.get("type")), file.provider
    if kind == "local" and "head_ip" in provider:        # Ray's own list is on the one machine that typed `ray up`
        return Head(provider["head_ip"], provider.get("external_head_ip") or provider["head_ip"], key_of(file))
    with quiet(None):
        from ray.autoscaler._private.providers import _get_node_provider
        from ray.autoscaler.sdk import get_head_node_ip
    try:
        with quiet(None):
            found = _get_node_provider(provider, file.name)
            nodes = found.non_terminated_nodes({"ray-node-type": "head"})
            where = get_head_node_ip(file.config) if nodes else ""
            pair = found.ec2.Instance(nodes[0]).key_name if nodes and kind == "aws" else None
    except ImportError as error:         # Ray's own has no name
        what = PACKAGES.get(kind, error.name or str(error))
        raise BadInput(f"--on {file.path}: looking at {kind} needs {what}, which is not here; cluster/README.md says "
                       "how to install it") from None
    except Exception as error:           # each cloud's own, and Ray's RuntimeError
        if "not found!" in str(error):
            raise BadInput(f"the head of {file.name} is not ready: it is being set up, or that failed.  "
                           f"`ray up --no-restart {file.path}` says") from None
        hint = HINTS.get(kind, "are your credentials there?")
        raise BadInput(f"--on {file.path}: {kind} does not let us look for the head: "
                       f"{' '.join(str(error).split())[:200]}  ({hint})") from None
    if not nodes:
        raise BadInput(f"{file.name} is not up: {kind} has no head of that name.  `ray up {file.path}` starts it")
    return Head(nodes[0], where, key_of(file, pair))


def key_of(file: ClusterFile, pair: str | None = None) -> str | None:
    """The file of the head's key: the one that is said, or the one that Ray made when it launched the head.

    `pair`: the name of the key pair of an AWS machine.   BadInput: it is not on this machine
    """
    from ray.autoscaler._private.util import generate_ssh_key_name, generate_ssh_key_paths

    auth, said, kind = file.config["auth"], file.provider, file.provider.get("type")
    if auth.get("ssh_private_key"):                      # `read` has seen that it is there
        return os.path.expanduser(auth["ssh_private_key"])
    if kind == "aws" and pair is not None:
        names = [pair]
    elif kind == "gcp":                                  # Ray uses the first of ten that is there
        names = [generate_ssh_key_name("gcp", n, said["region"], said["project_id"], auth["ssh_user"])
                 for n in range(10)]
    elif kind == "azure":
        names = [generate_ssh_key_name("azure", None, said["location"], said["resource_group"], auth["ssh_user"])]
    else:
        return None
    paths = [generate_ssh_key_paths(name)[1] if kind != "aws" else os.path.expanduser(f"~/.ssh/{name}.pem")
             for name in names]
    if (found := next((path for path in paths if os.path.exists(path)), None)) is None:
        raise BadInput(f"the head of {file.name} takes the key {paths[0]}, which is not on this machine: copy it from "
                       "the one that typed `ray up`, mode 600, or name yours as auth.ssh_private_key")
    return found


def token(file: ClusterFile | None) -> str:
    """Ray's token, from where Ray would read it, or from where `ray up` copies it.   BadInput: none"""
    if given := os.environ.get("RAY_AUTH_TOKEN"):
        return given.strip()
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else (file and file.token_file) or Path.home() / ".ray" / "auth_token"
    try:
        return path.expanduser().read_text(encoding="utf-8").strip()
    except OSError:
        if os.environ.get("RAY_AUTH_MODE") == "disabled":
            return ""
        raise BadInput(f"Ray's token is not in {path}: `bash cluster/secrets.sh` makes one, before `ray up`; of a "
                       "cluster that somebody else started, ask for it") from None


def never_by_proxy() -> None:
    """A proxy that the environment names must not see what goes to this machine itself."""
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1,localhost,::1"]))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]
