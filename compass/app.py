"""The Serve application of a Compass service.

compass.app:build        for `serve run`, `serve deploy` and `compass serve`
"""

from __future__ import annotations

from typing import Any

from compass.cluster.deployment import Application, application
from compass.cluster.gateway_replica import GatewayReplica
from compass.settings import Settings

APP = "compass"


def build(args: dict[str, Any] | None = None) -> Application:
    """The Serve application.

    Args:
        args: Settings by their names (`data`, `port`, …), as `serve_config.yaml` gives them. The API key is
            not among them: it comes from the environment of the cluster's nodes.
    """
    settings = Settings(**{name: value for name, value in (args or {}).items() if name != "api_key"})
    plain = settings.model_dump(mode="json", exclude={"api_key"}, exclude_none=True)
    plain["data"] = str(settings.data.resolve())
    return application(
        GatewayReplica,
        plain,
        name="Gateway",
        num_replicas=settings.gateways,
        max_ongoing_requests=settings.max_in_flight,
        health_check_period_s=1,
        max_surge_percent=100,  # a rollout ends an old replica when a new one answers, also where there is one only
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=15,
        # A byte, so that gateways are spread over the nodes: Ray places at random what reserves nothing at all.
        ray_actor_options={"num_cpus": 0, "memory": 1},
    )
