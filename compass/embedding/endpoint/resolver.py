"""Names are checked again when they are resolved to connect, since DNS may change its mind."""

from __future__ import annotations

import socket

from aiohttp import ThreadedResolver
from aiohttp.abc import ResolveResult

from compass.domain.embedding.endpoint_url import why_refused
from compass.errors import EndpointForbiddenError


class CheckedResolver(ThreadedResolver):
    """Resolves as the system does, and refuses a name that leads to an address not to be called."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of `host`.

        Raises:
            EndpointForbiddenError: one of them is not to be called.
            OSError: the name does not resolve.
        """
        addresses = await super().resolve(host, port, family)
        for address in addresses:
            reason = why_refused(address["host"])
            if reason is not None:
                raise EndpointForbiddenError(f"{host} resolves to {address['host']}, {reason}; it is not called")
        return addresses
