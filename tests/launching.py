"""Machines of cluster/'s launcher files, by Ray's own code for their cloud, which a test plays."""

import copy
import json
import subprocess
import sys
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
    assert swapped | {"provider": config["provider"]} == json.loads(json.dumps(config)), "only the provider differs"
    return _get_node_provider(swapped["provider"], swapped["cluster_name"], use_cache=False)
