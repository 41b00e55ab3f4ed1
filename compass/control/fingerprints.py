"""Whether endpoints may serve a space: asked by the router before it lets them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from compass.control.ports import Cluster
from compass.domain.embedding.fingerprint import ModelCheck, agreed_model
from compass.domain.routing.table import CollectionRoute
from compass.domain.space import BuiltBy, Space
from compass.errors import EndpointUnavailableError, FingerprintMismatchError

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
    examined = await cluster.index(route.uuid, space).examine(tuple(endpoints), api_key_env)
    for one in examined:
        if one.error is not None and (must_answer or accept):
            raise EndpointUnavailableError(one.error, {"endpoint": one.endpoint})
    return agreed_model(space, examined, accept=accept, advice=ADVICE)


async def mismatches(
    cluster: Cluster,
    route: CollectionRoute,
    space: Space,
    endpoints: Sequence[str],
    api_key_env: str | None,
    *,
    accept: bool,
    fresh: bool,
) -> list[FingerprintMismatchError]:
    """Each endpoint that may not serve a space, as the error that it would be refused by; one that is silent may.

    `accept` as in `builder`; `fresh`: the space will be empty, so that the endpoints need only agree with each other.
    """
    examined = await cluster.index(route.uuid, space).examine(tuple(endpoints), api_key_env)
    if fresh:
        space, examined = replace(space, built_by=None), [replace(one, cosine=None) for one in examined]
    errors: list[FingerprintMismatchError] = []
    fitting: list[ModelCheck] = []
    for one in examined:
        try:
            agreed_model(space, [*fitting, one], accept=accept, advice=ADVICE)
            fitting.append(one)
        except FingerprintMismatchError as error:
            errors.append(error)
    return errors
