"""Which kind of endpoint a URL names."""

from __future__ import annotations

from compass.adapters.endpoint import Endpoint
from compass.adapters.endpoint_client import Connections, EndpointClient
from compass.adapters.endpoint_url import SERVE, check_endpoint
from compass.adapters.serve_application import application
from compass.adapters.serve_endpoint import ServeEndpoint
from compass.domain.embedding import Kind
from compass.domain.space import SpaceConfig
from compass.domain.spending import Meter


def open_endpoint(
    url: str,
    config: SpaceConfig,
    kind: Kind,
    key: str | None,
    connections: Connections,
    meter: Meter | None = None,
) -> Endpoint:
    """An endpoint of a space; opens no connection yet. `key` goes over HTTP alone: a handle needs none.

    Raises:
        InvalidRequestError: the URL is not to be called.
    """
    checked = check_endpoint(url)
    if checked.startswith(SERVE):
        return ServeEndpoint(checked, config, kind, application(checked.removeprefix(SERVE)), meter=meter)
    return EndpointClient(checked, config, kind, key, connections, meter=meter)
