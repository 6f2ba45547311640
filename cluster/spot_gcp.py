"""Spot on Google Cloud: every machine is an operation of its own, and the operation fails where there is none."""

import re
from typing import Any

from ray.autoscaler._private.gcp.node import GCPNodeType
from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider

# No capacity in the zone, and the quotas of preemptible GPUs, which are other ones than those of the full price.
SOLD_OUT = re.compile(r"RESOURCE_POOL_EXHAUSTED|PREEMPTIBLE_\w+")
MARKET = "palimpsest-market"


class SpotFirst(GCPNodeProvider):
    """Ray's Google provider, but machines of a spot type that the zone lacks are launched at the full price."""

    def create_node(self, base_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        scheduling = base_config.get("scheduling", {})
        if scheduling.get("provisioningModel") != "SPOT":
            return super().create_node(base_config, tags | {MARKET: "on-demand"}, count)
        compute, created, lacking = self.resources[GCPNodeType.COMPUTE], {}, 0
        with self.lock:
            started = []
            for _ in range(count):                       # all at once, then wait for each
                try:
                    started.append(compute.create_instance(base_config, tags | {MARKET: "spot"},
                                                           wait_for_operation=False))
                except Exception as error:               # googleapiclient's HttpError: refused without an operation
                    lacking += sold_out(error)
            for operation, name in started:
                try:
                    created[name] = compute.wait_for_operation(operation)
                except Exception as error:               # Ray raises a plain one, around Google's list of errors
                    lacking += sold_out(error)
        if lacking:
            never = ("provisioningModel", "instanceTerminationAction")          # words of spot alone
            plain = {key: each for key, each in scheduling.items() if key not in never}
            full_price = base_config | {"scheduling": plain}
            created |= super().create_node(full_price, tags | {MARKET: "on-demand"}, lacking)
        return created


def sold_out(error: Exception) -> int:
    """1, where that is what the error says; else the error."""
    if SOLD_OUT.search(str(error)) is None:
        raise error
    return 1
