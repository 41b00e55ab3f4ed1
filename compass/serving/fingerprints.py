"""Whether endpoints may serve a space: asked by the router before it lets them."""

from __future__ import annotations

from collections.abc import Sequence

from compass.domain.fingerprint import judged
from compass.domain.routing import CollectionRoute
from compass.domain.space import BuiltBy, Space
from compass.errors import EndpointUnavailableError
from compass.serving.router_ports import Cluster

ADVICE = (
    "add a space for the new model, and swap; if it is the same model under another name, "
    "accept_new_fingerprint takes it where its vectors of stored texts agree"
)


async def builder(
    cluster: Cluster,
    route: CollectionRoute,
    space: Space,
    endpoints: Sequence[str],
    api_key_env: str | None,
    *,
    accept: bool,
    must_answer: bool,
) -> BuiltBy | None:
    """What to record as the builder of a space before these endpoints serve it; None: nothing is known.

    `accept` takes a model that its server names otherwise, if its vectors agree; it must answer then. An endpoint
    that does not answer is refused if it `must_answer`, else it is judged when it does.

    Raises:
        FingerprintMismatchError: an endpoint is another model.
        EndpointUnavailableError: it does not answer, and must.
    """
    found = await cluster.index(route.uuid, space).examine(tuple(endpoints), api_key_env)
    for one in found:
        if one.error is not None and (must_answer or accept):
            raise EndpointUnavailableError(one.error, {"endpoint": one.endpoint})
    return judged(space, found, accept=accept, advice=ADVICE)
