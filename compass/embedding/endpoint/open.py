"""Which kind of endpoint a URL names."""

from __future__ import annotations

from compass.domain.embedding.contract import Kind
from compass.domain.embedding.endpoint_url import SERVE, check_endpoint
from compass.domain.rebuild.budget import Meter
from compass.domain.space import SpaceConfig
from compass.embedding.endpoint.base import Endpoint
from compass.embedding.endpoint.http import Connections, EndpointClient
from compass.embedding.endpoint.serve import ServeEndpoint
from compass.embedding.endpoint.serve_application import application


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
