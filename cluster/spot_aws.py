"""Spot on AWS: Ray asks in every zone, and says with EC2's own word why the last one had none."""

from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

SOLD_OUT = {
    "InsufficientInstanceCapacity",  # none left, in any zone
    "MaxSpotInstanceCountExceeded",  # the account's quota for spot
    "SpotMaxPriceTooLow",  # a SpotOptions.MaxPrice below the market
    "UnfulfillableCapacity",
    "Unsupported",  # not offered in the zone that was asked last: Ray tells its word alone, and others may be sold out
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
