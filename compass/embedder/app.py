"""The embedder as a Serve application.

compass.embedder.app:build      for `serve run` and `serve deploy`; `model=…` is the only argument that must be given
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.types import ASGIApp

from compass.cluster.deployment import Application, application
from compass.domain.embedding.contract import Reply
from compass.embedder.backend import open_server
from compass.embedder.config import EmbedderConfig, api_key
from compass.errors import InvalidRequestError

SLACK = 64  # requests beyond the permits that a replica takes, so that it can refuse them


class EmbedderReplica:
    """A replica: one model behind HTTP, and behind the handle that `serve://` calls."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Load the model; the API key is in the environment of the node."""
        self._server = open_server(EmbedderConfig(**config), api_key())

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application behind Serve's proxy."""
        return Starlette(routes=self._server.routes())

    async def tei_embed(self, texts: Sequence[str], options: dict[str, Any]) -> Reply:
        """As `POST /embed`, for a caller inside the cluster: float32 rows, and refusals as answers."""
        return await self._server.reply(texts, options)

    async def tei_info(self) -> dict[str, Any]:
        """As `GET /info`."""
        return self._server.info()

    async def check_health(self) -> None:
        """Serve replaces a replica whose model does not embed a harmless text any more."""
        if not await self._server.is_healthy():
            raise RuntimeError("the model has failed, at a harmless text too")


def build(args: dict[str, Any]) -> Application:
    """The Serve application.

    Args:
        args: See `EmbedderConfig`. The API key is not among them: it is COMPASS_EMBEDDER_API_KEY in the
            environment of the cluster's nodes.

    Raises:
        InvalidRequestError: an argument is missing, unknown or does not fit.
    """
    try:
        config = EmbedderConfig(**args)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)]
        raise InvalidRequestError(f"compass.embedder.app:build: {'; '.join(problems)}") from None
    return application(
        EmbedderReplica,
        config.model_dump(mode="json"),
        name="Embedder",
        autoscaling_config={
            "min_replicas": config.min_replicas,
            "max_replicas": max(config.min_replicas, config.max_replicas),
            "target_ongoing_requests": config.target_ongoing_requests,
        },
        max_ongoing_requests=config.max_concurrent_requests + SLACK,
        ray_actor_options={"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
        logging_config={"enable_access_log": False},  # a rebuild makes thousands of requests
    )
