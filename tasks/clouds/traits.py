"""What is always true of each vendor, with the source of each fact. Known without any account and without an SDK.

The same in one table for people: docs/vendors.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from tasks.clouds.base import Traits

TRAITS: Mapping[str, Traits] = {
    "aws": Traits(
        # A stopped instance costs nothing, but its disks do; ours are terminated and not stopped.
        # https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-lifecycle.html
        stopped_bills=False,
        # Linux by the second, at least one minute: https://aws.amazon.com/ec2/pricing/on-demand/
        billing_minimum_s=60,
        billing_increment_s=1,
        # A name is a tag, and tags are not unique.
        unique_names=False,
        # ClientToken: https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-idempotency.html
        idempotency_token=True,
        # Nothing ends an instance at a given time but itself: shutdown terminates, and the guest's timer shuts down.
        native_ttl=False,
        # https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html names no bound and advises waits
        # from seconds to minutes.
        visibility_lag_s=60.0,
    ),
    "azure": Traits(
        # "Stopped (allocated)" is billed: https://learn.microsoft.com/azure/virtual-machines/states-billing
        stopped_bills=True,
        # Linux machines are billed by the second, at least five minutes as Spare Cores has it
        # (https://github.com/SpareCores/sc-crawler, vendors.py).
        billing_minimum_s=300,
        billing_increment_s=1,
        unique_names=True,  # of groups in a subscription, and of machines in a group, with If-None-Match: *
        idempotency_token=False,
        native_ttl=False,  # auto-shutdown deallocates; nothing deletes (see creation.py)
        # Lists are served from a cache; no bound is documented. Met: https://github.com/hashicorp/terraform-provider-azurerm/issues/16155
        visibility_lag_s=60.0,
    ),
    "gcp": Traits(
        # A stopped instance is not billed for CPU and memory, and is for its disks:
        # docs.cloud.google.com/compute/docs/instances/stop-start-instance#billing
        stopped_bills=True,
        # "a minimum of 1 minute, then per second": cloud.google.com/compute/vm-instance-pricing#billingmodel
        billing_minimum_s=60,
        billing_increment_s=1,
        unique_names=True,  # in a zone: alreadyExists, docs.cloud.google.com/compute/docs/naming-resources
        idempotency_token=True,  # requestId of instances.insert in the API's discovery document
        native_ttl=True,  # maxRunDuration: docs.cloud.google.com/compute/docs/instances/limit-vm-runtime
        # No bound is documented; reads follow writes closely. This is caution.
        visibility_lag_s=15.0,
    ),
    "hetzner": Traits(
        # docs.hetzner.com/cloud/billing/faq: billed until deleted, powered off or not; by the hour, rounded up.
        stopped_bills=True,
        billing_minimum_s=3600,
        billing_increment_s=3600,
        # docs.hetzner.cloud/reference/cloud, "Create a Server": the name must be unique in the project; no token.
        unique_names=True,
        idempotency_token=False,
        native_ttl=False,
        # Nothing is said of listings that lag; our margin.
        visibility_lag_s=10.0,
        # A location is one place; network zones only join private networks.
        regions_are_zones=True,
    ),
    "upcloud": Traits(
        # upcloud.com/docs/getting-started/accounts/account-balance, developers.upcloud.com/1.3/4-pricing: by the hour.
        # Storages and addresses bill while a server is stopped, and with most plans the server does too.
        stopped_bills=True,
        billing_minimum_s=3600,
        billing_increment_s=3600,
        # developers.upcloud.com/1.3/8-servers: neither hostname nor title need be unique; no token.
        unique_names=False,
        idempotency_token=False,
        native_ttl=False,
        # Nothing is said of listings that lag; our margin, wide because absence is all that there is to go by.
        visibility_lag_s=30.0,
        regions_are_zones=True,
    ),
}
