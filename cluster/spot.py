"""Spot GPUs on AWS, and on-demand ones where spot is sold out.

    python cluster/spot.py ~/ray_bootstrap_config.yaml      on the head, before `ray start`

Ray launches what a node type says and, where the market has none, asks again every few seconds, for ever: a study
would wait all night for a machine that nobody sells.  SpotFirst asks for spot in every zone and then, in the same
call, for the same machine at the full price.  A node says in its tag `palimpsest-market` what it is.

`ray up` and its kin run Ray's own AWS provider and need none of this; only the autoscaler, on the head, does.
"""

import sys
from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

SOLD_OUT = {
    "InsufficientInstanceCapacity",  # none left, in any zone
    "MaxSpotInstanceCountExceeded",  # the account's quota for spot
    "SpotMaxPriceTooLow",  # a SpotOptions.MaxPrice below the market
    "UnfulfillableCapacity",
}
MARKET = "palimpsest-market"


class SpotFirst(AWSNodeProvider):
    """Ray's AWS provider, but a spot launch that finds no capacity becomes an on-demand launch."""

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        market = node_config.get("InstanceMarketOptions", {}).get("MarketType", "on-demand")
        try:
            return super().create_node(node_config, tags | {MARKET: market}, count)
        except NodeLaunchException as error:
            if market != "spot" or error.category not in SOLD_OUT:
                raise
        full_price = {name: value for name, value in node_config.items() if name != "InstanceMarketOptions"}
        return super().create_node(full_price, tags | {MARKET: "on-demand"}, count)


def main(path: Path) -> None:
    """Name SpotFirst as the provider of a bootstrapped cluster config, in place."""
    config = yaml.safe_load(path.read_text())
    config["provider"] |= {"type": "external", "module": "cluster.spot.SpotFirst"}
    path.write_text(yaml.safe_dump(config))


if __name__ == "__main__":
    main(Path(sys.argv[1]).expanduser())
