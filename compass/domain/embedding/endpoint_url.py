"""Which addresses Compass calls for embeddings: any HTTP server, the private network included, but no trap.

Whoever may name an endpoint makes this server send requests. Loopback and private networks are allowed, a
fleet inside the own network is what endpoints are. Refused is what answers secrets to anybody who can reach
it: link-local addresses and the metadata services of clouds, in every spelling; and what is no server at
all: multicast, unspecified, reserved. Names are checked again when they are resolved to connect
(`CheckedResolver`), since DNS may change its mind.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from ipaddress import IPv4Address, IPv6Address
from typing import NoReturn

from yarl import URL

from compass.domain.names import NAME
from compass.domain.space import BUILTIN
from compass.errors import InvalidRequestError

MAX_URL_CHARS = 2_048
SERVE = "serve://"  # begins the name of an application of Ray Serve on the same cluster

_METADATA_NAMES = frozenset(
    {"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"}
)
# Those that are not link-local already.
_METADATA_ADDRESSES = frozenset(
    map(
        ipaddress.ip_address,
        (
            "100.100.100.200",  # Alibaba Cloud
            "168.63.129.16",  # Azure's wire server
            "192.0.0.192",  # Oracle Cloud
            "fd00:ec2::254",  # AWS, instance metadata
            "fd00:ec2::23",  # AWS, pod identity
            "fd20:ce::254",  # Google Cloud
        ),
    )
)
# Prefixes that carry an IPv4 address in their last 32 bits: mapped, compatible, NAT64 (RFC 6052, RFC 8215).
_CARRIERS = tuple(map(ipaddress.IPv6Network, ("::ffff:0:0/96", "::/96", "64:ff9b::/96", "64:ff9b:1::/48")))
_NUMBERS = re.compile(r"(0[xX][0-9a-fA-F]*|[0-9]+)(\.(0[xX][0-9a-fA-F]*|[0-9]+)){0,3}")


def check_endpoint(url: str) -> str:
    """The canonical URL that Compass posts to, ending in `/embed`; or "builtin", or `serve://<application>`.

    Args:
        url: http or https, with or without the trailing `/embed`.

    Raises:
        InvalidRequestError: another scheme, credentials in the URL, an address that is not to be called.
            The message never repeats the query string or the credentials.
    """
    if url == BUILTIN:
        return url
    if url.startswith(SERVE):
        if not NAME.fullmatch(url.removeprefix(SERVE)):
            _refuse(f"after {SERVE} comes the name of an application alone, and it matches {NAME.pattern}")
        return url
    if len(url) > MAX_URL_CHARS or not url.isprintable() or any(c.isspace() or c == "\\" for c in url):
        _refuse(f"must be a URL of at most {MAX_URL_CHARS} characters, without spaces, controls and backslashes")
    parsed = _parse(url)
    if parsed.scheme not in ("http", "https") or not parsed.host:
        _refuse('must begin with http:// or https:// and name a host, or be "builtin" or serve://<application>')
    if parsed.raw_user is not None or parsed.raw_password is not None:
        _refuse("must not hold credentials; give the key by an environment variable, see api_key_env")
    reason = why_refused(parsed.host)
    if reason is not None:
        _refuse(f"{parsed.host} is {reason}; it is not called")
    path = parsed.raw_path.rstrip("/")
    path = path if path.endswith("/embed") else path + "/embed"
    return str(parsed.with_path(path, encoded=True).with_query(parsed.query))


def shown(url: str) -> str:
    """The URL as errors and logs may show it: without credentials, query string and fragment."""
    parsed = URL(url, encoded=True)
    return str(parsed.with_user(None).with_query(None).with_fragment(None))


def why_refused(host: str) -> str | None:
    """Why this host name or address must not be called, or None; a name is judged by itself, unresolved."""
    name = host.rstrip(".").lower()
    if name in _METADATA_NAMES:
        return "a cloud's metadata service"
    address = _address(name)
    return None if address is None else _why_refused_address(address)


def _parse(url: str) -> URL:
    try:
        parsed = URL(url)
        parsed.port  # noqa: B018  # reading it checks it
    except ValueError:
        parsed = URL()
    return parsed


def _address(name: str) -> IPv4Address | IPv6Address | None:
    """The address that a host spells, as the system's resolver reads it: decimal, octal, hex, shortened too."""
    try:
        return ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        pass
    if not _NUMBERS.fullmatch(name):
        return None
    try:
        return IPv4Address(socket.inet_aton(name))
    except OSError:
        return None


def _why_refused_address(address: IPv4Address | IPv6Address) -> str | None:
    if address in _METADATA_ADDRESSES:
        return "a cloud's metadata service"
    if address.is_link_local:
        return "a link-local address, where clouds keep their metadata services"
    if address.is_unspecified:
        return "the unspecified address"
    if address.is_multicast:
        return "a multicast address"
    if address.is_loopback:  # ::1 lies in the range of carriers
        return None
    carried = _carried(address)
    if carried is not None:
        return _why_refused_address(carried)
    return "a reserved address" if address.version == 4 and address.is_reserved else None


def _carried(address: IPv4Address | IPv6Address) -> IPv4Address | None:
    if isinstance(address, IPv4Address):
        return None
    if address.sixtofour is not None:
        return address.sixtofour
    return IPv4Address(int(address) & 0xFFFFFFFF) if any(address in net for net in _CARRIERS) else None


def _refuse(detail: str) -> NoReturn:
    raise InvalidRequestError(
        f"embed_endpoint: {detail}", {"errors": [{"field": "embed_endpoint", "detail": detail}]}
    ) from None
