"""Spot GPUs, and on-demand ones where spot is sold out.

    python cluster/spot.py ~/ray_bootstrap_config.yaml      on the head, before `ray start`

Ray launches what a node type says and, where the market has none, asks again every few seconds, for ever: a study
would wait all night for a machine that nobody sells.  SpotFirst asks for spot and then, in the same call, for the same
machine at the full price.  A node says in its tag `palimpsest-market` what it is.

    spot_aws.py  spot_gcp.py  spot_azure.py      the same promise, in each cloud's words: who says "sold out", and how

`ray up` and its kin run Ray's own providers and need none of this; only the autoscaler, on the head, does.
"""

import sys
from pathlib import Path

import yaml

CLOUDS = ("aws", "gcp", "azure")


def main(path: Path) -> None:
    """Name SpotFirst as the provider of a bootstrapped cluster config, in place."""
    config = yaml.safe_load(path.read_text())
    cloud = config["provider"]["type"]
    if cloud not in CLOUDS:
        sys.exit(f"spot.py: {path}: provider.type: {cloud}; spot is bought on {', '.join(CLOUDS)}")
    config["provider"] |= {"type": "external", "module": f"cluster.spot_{cloud}.SpotFirst"}
    path.write_text(yaml.safe_dump(config))


if __name__ == "__main__":
    main(Path(sys.argv[1]).expanduser())
