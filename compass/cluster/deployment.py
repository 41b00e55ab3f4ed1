"""A plain class becomes a deployment of Ray Serve, behind Serve's proxy and a Python handle."""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application

__all__ = ["Application", "application"]


def application(replica_class: type, argument: dict[str, Any], **options: Any) -> Application:
    """The application of one deployment.

    Args:
        replica_class: What a replica is; its `__serve_build_asgi_app__` makes the ASGI application.
        argument: What each replica is made with.
        options: Those of `serve.deployment`.
    """
    deployment = serve.deployment(**options)(serve.ingress()(replica_class))
    return deployment.bind(argument)
