"""Which addresses are called for embeddings, in every spelling."""

from __future__ import annotations

import pickle
import socket
from typing import Any

import pytest

from compass.domain.embedding.endpoint_url import EndpointUrl, check_endpoint, shown, why_refused
from compass.embedding.endpoint.resolver import CheckedResolver
from compass.errors import EndpointForbiddenError, InvalidRequestError


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("builtin", "builtin"),
        ("http://tei:8080", "http://tei:8080/embed"),
        ("http://tei:8080/", "http://tei:8080/embed"),
        ("http://tei:8080/embed", "http://tei:8080/embed"),
        ("http://tei:8080/embed/", "http://tei:8080/embed"),
        ("https://models.example/v1?api-version=2#top", "https://models.example/v1/embed?api-version=2"),
        ("HTTPS://Models.Example:443/a%2Fb", "https://models.example/a%2Fb/embed"),
        ("http://localhost:3000", "http://localhost:3000/embed"),
        ("http://127.0.0.1:3000", "http://127.0.0.1:3000/embed"),
        ("http://10.1.2.3", "http://10.1.2.3/embed"),
        ("http://192.168.0.4:80", "http://192.168.0.4/embed"),
        ("http://172.16.9.9", "http://172.16.9.9/embed"),
        ("http://[::1]:3000", "http://[::1]:3000/embed"),
        ("http://[fd12:3456::1]", "http://[fd12:3456::1]/embed"),
        ("serve://embedder", "serve://embedder"),
        ("serve://all-minilm_2", "serve://all-minilm_2"),
    ],
)
def test_an_endpoint_has_one_canonical_url(url: str, canonical: str) -> None:
    """With or without /embed; loopback and private networks are where fleets live; a second pass changes nothing."""
    assert EndpointUrl.parse(url).canonical == canonical
    assert EndpointUrl.parse(canonical) == EndpointUrl.parse(url)
    assert check_endpoint(url) == canonical


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.1.1",
        "2852039166",  # decimal
        "0xa9fea9fe",  # hex
        "0251.0376.0251.0376",  # octal
        "169.254.43518",  # shortened
        "0xA9.0xFE.0xA9.0xFE",
        "169。254。169。254",  # other scripts' full stops and digits
        "①⑥⑨.254.169.254",
        "169.254.169.254.",
        "[::ffff:169.254.169.254]",
        "[::ffff:a9fe:a9fe]",
        "[::169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[64:ff9b:1::a9fe:a9fe]",
        "[2002:a9fe:a9fe::1]",
        "[fe80::1]",
        "[fe80::1%25eth0]",
        "[fd00:ec2::254]",
        "[fd20:ce::254]",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "metadata.google.internal",
        "METADATA.GOOGLE.INTERNAL.",
        "metadata",
        "instance-data",
        "0.0.0.0",
        "0",
        "[::]",
        "[::ffff:0.0.0.0]",
        "224.0.0.1",
        "[ff02::1]",
        "255.255.255.255",
        "240.0.0.1",
    ],
)
def test_addresses_that_are_traps_are_refused_in_every_spelling(host: str) -> None:
    """Link-local, metadata, unspecified, multicast and reserved: however the address is written."""
    with pytest.raises(InvalidRequestError, match="it is not called"):
        EndpointUrl.parse(f"http://{host}/embed")


@pytest.mark.parametrize("host", ["0x7f000001", "127.1", "2130706433", "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]"])
def test_other_spellings_of_allowed_addresses_are_allowed(host: str) -> None:
    """The rule is about where an address leads, not about how it is written."""
    EndpointUrl.parse(f"http://{host}/")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "tei:8080",
        "ftp://host/embed",
        "file:///etc/passwd",
        "unix:///run/tei.sock",
        "//host/embed",
        "http://",
        "http:///embed",
        "http://host:99999",
        "http://host:port",
        "http://ho st/",
        "http://host/\nX: y",
        "http://host\\@169.254.169.254/",
        "http://host/" + "a" * 3_000,
        "Builtin",
        "serve://",
        "serve://Embedder",
        "serve://a/b",
        "serve://a.b",
        "serve://a:8000",
        "serve://user@a",
        "serve://a?k=v",
        "serve://" + "a" * 64,
        "SERVE://a",
    ],
)
def test_what_is_no_http_url_is_refused(url: str) -> None:
    """Another scheme, no host, a port out of range, spaces, controls: refused, with the field named."""
    with pytest.raises(InvalidRequestError) as caught:
        EndpointUrl.parse(url)
    assert caught.value.fields["errors"][0]["field"] == "embed_endpoint"


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    """A key belongs into a variable; the refusal does not print it, nor what follows the question mark."""
    for url in (
        "http://user:hunter2@host/",
        "http://hunter2@host/",
        "ftp://host/?key=hunter2",
        "http://0/?k=hunter2",
    ):
        with pytest.raises(InvalidRequestError) as caught:
            EndpointUrl.parse(url)
        assert "hunter2" not in repr(caught.value)
        assert "hunter2" not in str(caught.value.problem())


@pytest.mark.parametrize(
    ("text", "is_builtin", "application", "is_http"),
    [
        ("builtin", True, None, False),
        ("serve://embedder", False, "embedder", False),
        ("http://tei:8080", False, None, True),
    ],
)
def test_a_url_knows_how_it_is_called(text: str, is_builtin: bool, application: str | None, is_http: bool) -> None:
    """In this process, by a Serve handle, or over HTTP."""
    url = EndpointUrl.parse(text)
    assert (url.is_builtin, url.application, url.is_http) == (is_builtin, application, is_http)


def test_no_text_made_of_a_url_holds_its_secrets() -> None:
    """Printed, formatted, inside of something else or pickled and back: only `canonical` has the query string."""
    url = EndpointUrl.parse("https://h:3/embed?key=hunter2#top")
    assert url.canonical == "https://h:3/embed?key=hunter2"
    texts = [str(url), repr(url), f"{url}", f"{url!r}", f"{[url]}", url.shown, str(pickle.loads(pickle.dumps(url)))]
    assert not [text for text in texts if "hunter2" in text]
    assert url.shown == str(url) == "https://h:3/embed"


def test_a_shown_url_holds_no_secret() -> None:
    """Logs and errors get scheme, host, port and path."""
    assert shown("http://u:p@h:3/embed?key=1#x") == "http://h:3/embed"
    assert shown("serve://embedder") == "serve://embedder"
    assert shown("builtin") == "builtin"


def test_a_name_is_judged_by_itself() -> None:
    """A name that no list knows may be called; what it resolves to is looked at when connecting."""
    assert why_refused("tei.internal") is None


async def test_a_name_that_resolves_to_a_trap_is_refused_when_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS may change its mind after the check: one bad address among the good ones is enough to refuse."""
    addresses = ["127.0.0.1", "169.254.169.254"]

    def resolve(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(EndpointForbiddenError, match=r"rebinds\.example resolves to 169\.254\.169\.254"):
        await CheckedResolver().resolve("rebinds.example", 80)
    addresses.pop()
    results = await CheckedResolver().resolve("rebinds.example", 80)
    assert [one["host"] for one in results] == ["127.0.0.1"]
