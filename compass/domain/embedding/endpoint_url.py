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
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, repr=False)
class EndpointUrl:
    """What names an endpoint; made by `parse`, which checks it. Text made of it, by whatever way, holds no secret.

    Attributes:
        canonical: What is called and stored, query string included: an http(s) URL that ends in `/embed`,
            "builtin", or `serve://<application>`. Never shown.
    """

    canonical: str

    @staticmethod
    def parse(text: str) -> EndpointUrl:
        """The endpoint that a text names.

        Args:
            text: http or https, with or without the trailing `/embed`; "builtin"; or `serve://<application>`.

        Raises:
            InvalidRequestError: another scheme, credentials in the URL, an address that is not to be called.
                The message never repeats the query string or the credentials.
        """
        if text == BUILTIN:
            return EndpointUrl(text)
        if text.startswith(SERVE):
            if not NAME.fullmatch(text.removeprefix(SERVE)):
                _refuse(f"after {SERVE} comes the name of an application alone, and it matches {NAME.pattern}")
            return EndpointUrl(text)
        return EndpointUrl(_canonical_http(text))

    @property
    def is_builtin(self) -> bool:
        """Whether it is the model of this package."""
        return self.canonical == BUILTIN

    @property
    def application(self) -> str | None:
        """The name of the Serve application, of `serve://` alone."""
        return self.canonical.removeprefix(SERVE) if self.canonical.startswith(SERVE) else None

    @property
    def is_http(self) -> bool:
        """Whether it is called over HTTP."""
        return not self.is_builtin and self.application is None

    @property
    def shown(self) -> str:
        """As errors and logs may show it: without credentials, query string and fragment."""
        return shown(self.canonical)

    def __str__(self) -> str:
        return self.shown

    def __repr__(self) -> str:
        return f"EndpointUrl({self.shown!r})"


def check_endpoint(text: str) -> str:
    """The canonical form of what names an endpoint, as records hold it.

    Raises:
        InvalidRequestError: as `EndpointUrl.parse`.
    """
    return EndpointUrl.parse(text).canonical


def shown(text: str) -> str:
    """A stored endpoint as errors and logs may show it; it is not checked again."""
    if text == BUILTIN:
        return text
    return str(URL(text, encoded=True).with_user(None).with_query(None).with_fragment(None))


def why_refused(host: str) -> str | None:
    """Why this host name or address must not be called, or None; a name is judged by itself, unresolved."""
    name = host.rstrip(".").lower()
    if name in _METADATA_NAMES:
        return "a cloud's metadata service"
    address = _address(name)
    return None if address is None else _why_refused_address(address)


def _canonical_http(text: str) -> str:
    if len(text) > MAX_URL_CHARS or not text.isprintable() or any(c.isspace() or c == "\\" for c in text):
        _refuse(f"must be a URL of at most {MAX_URL_CHARS} characters, without spaces, controls and backslashes")
    parsed = _parse(text)
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


def _parse(text: str) -> URL:
    try:
        parsed = URL(text)
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
