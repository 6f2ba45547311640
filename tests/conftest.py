"""Ray reads its authentication from the environment once, when it is imported, and any test file may be the first to
import it: so the environment is settled, with a token for these tests alone, before the first."""

import os
import secrets

from studies.engine.cluster import settle_environment

settle_environment()
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
