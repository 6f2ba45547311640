"""Spot on Azure: a machine is a deployment, and one that fails leaves behind what it had made until then."""

import contextlib
import re
from typing import Any
from uuid import uuid4

from azure.core.exceptions import AzureError
from ray.autoscaler._private._azure.config import get_azure_sdk_function
from ray.autoscaler._private._azure.node_provider import AzureNodeProvider
from ray.autoscaler.tags import TAG_RAY_NODE_NAME

# No capacity, the size not offered here as spot, and the quota of spot cores, which is not that of the full price.
SOLD_OUT = re.compile(r"AllocationFailed|SkuNotAvailable|OverconstrainedAllocationRequest|lowPriorityCores", re.I)
MARKET = "palimpsest-market"


class SpotFirst(AzureNodeProvider):
    """Ray's Azure provider, but a spot machine that there is none of is launched at the full price."""

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> None:
        asked = node_config["azure_arm_parameters"]
        if asked.get("priority") != "Spot":
            return super().create_node(node_config, tags | {MARKET: "on-demand"}, count)
        never = ("priority", "evictionPolicy", "billingProfile")                # words of spot alone
        plain = {key: each for key, each in asked.items() if key not in never}
        full_price = node_config | {"azure_arm_parameters": plain}
        for _ in range(count):              # one deployment each, under a name by which it can be cleared away
            name = f"{tags[TAG_RAY_NODE_NAME]}-{uuid4().hex[:8]}"
            try:
                super().create_node(node_config, tags | {MARKET: "spot", TAG_RAY_NODE_NAME: name}, 1)
            except AzureError as error:
                self.clear(name)
                if SOLD_OUT.search(str(error)) is None:
                    raise
                super().create_node(full_price, tags | {MARKET: "on-demand"}, 1)

    def clear(self, name: str) -> None:
        """Delete what a failed deployment left: a machine that never ran, its disk, network interface and address."""
        group, compute, network = self.provider_config["resource_group"], self.compute_client, self.network_client
        for machine in compute.virtual_machines.list(resource_group_name=group):
            if machine.name.startswith(name):
                self._delete_node_and_resources(group, machine.name)
        for kind, argument in ((network.network_interfaces, "network_interface_name"),
                               (network.public_ip_addresses, "public_ip_address_name")):       # in this order
            for each in kind.list(resource_group_name=group):
                if each.name.startswith(name):
                    delete = get_azure_sdk_function(kind, "delete")
                    with contextlib.suppress(AzureError):
                        delete(resource_group_name=group, **{argument: each.name}).wait()
