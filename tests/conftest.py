"""What has to be settled before the first test file is imported, whichever that is.

Ray reads its authentication from the environment once, when it is imported: so there is a token for these tests alone.
Where several processes share the tests (`make test`: pytest-xdist), each has its share of the cores and a Ray of its
own: they do not find each other's clusters.
"""

import atexit
import os
import secrets
import shutil
import tempfile

import pytest
import torch

from studies.engine.cluster import settle_environment

pytest.register_assert_rewrite("pretend_aws", "toy_search")       # whose fixtures several test files have
settle_environment()
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
if processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="r", dir="/tmp")       # short: sockets have paths of 107 bytes
    atexit.register(shutil.rmtree, os.environ["RAY_TMPDIR"], ignore_errors=True)
