"""Which kind of endpoint a URL names."""

from __future__ import annotations

from compass.domain.embedding.contract import Kind
from compass.domain.embedding.endpoint_url import EndpointUrl
from compass.domain.rebuild.budget import Meter
from compass.domain.space import SpaceConfig
from compass.embedding.endpoint.base import Endpoint
from compass.embedding.endpoint.connections import Connections
from compass.embedding.endpoint.http import HttpEndpoint
from compass.embedding.endpoint.serve import ServeEndpoint


def open_endpoint(
    url: EndpointUrl,
    config: SpaceConfig,
    kind: Kind,
    key: str | None,
    connections: Connections,
    meter: Meter | None = None,
) -> Endpoint:
    """An endpoint of a space; opens no connection yet. `key` goes over HTTP alone: a handle needs none."""
    if (name := url.application) is not None:
        return ServeEndpoint(url, config, kind, connections.application(name), meter=meter)
    return HttpEndpoint(url, config, kind, key, connections, meter=meter)
