"""The OpenAPI document and the page made of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from compass.http.openapi import openapi_document
from compass.http.routes import ROUTES


def refs(node: Any) -> Iterator[str]:
    """Every $ref below a node."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from refs(value)
    elif isinstance(node, list):
        for value in node:
            yield from refs(value)


async def test_every_route_is_in_the_document(http: Any) -> None:
    """Each with its success, its problem, its path parameters, and its body where it has one."""
    answer = await http.get("/openapi.json")
    assert answer.status_code == 200
    document = answer.json()
    assert document["openapi"].startswith("3.1")
    for route in ROUTES:
        operation = document["paths"][route.path][route.method.lower()]
        assert {str(status) for status in (route.status, *route.others)} < set(operation["responses"])
        assert "application/problem+json" in operation["responses"]["default"]["content"]
        named = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
        assert named == set(re.findall(r"{(\w+)}", route.path))
        assert ("requestBody" in operation) == (route.body is not None)
    described = sum(len(methods) for methods in document["paths"].values())
    assert described == len(ROUTES)


def test_every_reference_resolves() -> None:
    """No $ref of the document leads nowhere."""
    document = openapi_document()
    references = set(refs(document))
    assert references
    for ref in references:
        node: Any = document
        for step in ref.removeprefix("#/").split("/"):
            node = node[step]


def test_operation_ids_are_unique() -> None:
    """A client generator makes a function of each."""
    ids = [o["operationId"] for methods in openapi_document()["paths"].values() for o in methods.values()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", sorted(openapi_document()["components"]["schemas"]))
def test_every_schema_is_a_schema(name: str) -> None:
    """JSON Schema 2020-12, as OpenAPI 3.1 wants."""
    Draft202012Validator.check_schema(openapi_document()["components"]["schemas"][name])


@pytest.mark.parametrize(
    ("name", "value", "fits"),
    [
        ("SearchRequest", {"query": "x", "vector": [1.5, 2]}, True),
        ("SearchRequest", {"vector": "AAAA", "vector_space": ["a"]}, True),
        ("SearchRequest", {"query": "x", "top_k": 0}, False),
        ("SearchRequest", {"topk": 3}, False),
        ("ChunkIn", {"file_id": "f", "chunk_index": 0, "text": "", "embeddings": {"a": [1]}}, True),
        ("ChunkIn", {"file_id": "f", "chunk_index": 0}, False),
        ("NewCollection", {"name": "a", "vector_spaces": {"s": {"dims": 3, "model": "m"}}}, True),
        ("NewCollection", {"name": "A"}, False),
    ],
)
def test_schemas_say_what_the_server_takes(name: str, value: Any, fits: bool) -> None:
    """What the server refuses does not fit its schema, what it takes does."""
    document = openapi_document()
    validator = Draft202012Validator({**document, "$ref": f"#/components/schemas/{name}"})
    assert validator.is_valid(value) is fits


async def test_answers_fit_their_schemas(http: Any, docs: Any) -> None:
    """What the server answers is what the document promises."""
    chunk = {"client_id": "a", "file_id": "f", "chunk_index": 0, "text": "t", "page": 1, "metadata": {"k": ["v"]}}
    await http.post("/collections/docs/vector-spaces", json={"name": "new", "dims": 8, "model": "m"})
    document = openapi_document()
    search = {"query": "t", "include_vectors": True}
    for method, path, template, body in [
        ("POST", "/collections/docs/ingest", "/collections/{collection}/ingest", {"chunks": [chunk]}),
        ("POST", "/collections/docs/search", "/collections/{collection}/search", search),
        ("GET", "/collections", "/collections", None),
        ("GET", "/collections/docs", "/collections/{collection}", None),
        ("GET", "/collections/docs/chunks", "/collections/{collection}/chunks", None),
        ("GET", "/collections/docs/chunks/1", "/collections/{collection}/chunks/{id}", None),
        ("GET", "/collections/docs/vector-spaces", "/collections/{collection}/vector-spaces", None),
        (
            "GET",
            "/collections/docs/vector-spaces/new/status",
            "/collections/{collection}/vector-spaces/{space}/status",
            None,
        ),
        ("GET", "/health", "/health", None),
        ("GET", "/ready", "/ready", None),
    ]:
        answer = await http.request(method, path, json=body)
        operation = document["paths"][template][method.lower()]
        schema = operation["responses"][str(answer.status_code)]["content"]["application/json"]["schema"]
        Draft202012Validator({**document, **schema}).validate(answer.json())
    problem = (await http.get("/collections/none")).json()
    Draft202012Validator(document["components"]["schemas"]["Problem"]).validate(problem)


class _Page(HTMLParser):
    """Collects what a page would load, run or link to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "data", "style") or name.startswith("on") or (name == "href" and tag != "a"):
                self.loaded.append(f"{tag} {name}={value}")
            if name == "href" and tag == "a":
                self.links.append(value or "")
            if name == "id":
                self.ids.add(value or "")


async def test_the_page_needs_nothing_but_itself(http: Any) -> None:
    """No script, nothing loaded, a policy that allows its own style alone, every inner link resolves."""
    answer = await http.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    page = _Page()
    page.feed(answer.text)
    assert page.loaded == []
    assert "script" not in page.tags
    assert {link.removeprefix("#") for link in page.links if link.startswith("#")} <= page.ids
    assert [link for link in page.links if not link.startswith("#")] == ["openapi.json"]


async def test_the_policy_allows_the_style_that_the_page_has(http: Any) -> None:
    """The hash is that of the style element's very text."""
    import base64
    import hashlib

    answer = await http.get("/docs")
    style = answer.text.split("<style>")[1].split("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in answer.headers["content-security-policy"]


async def test_the_page_shows_each_route_with_an_example(http: Any) -> None:
    """Method, path and a curl line for each."""
    text = (await http.get("/docs")).text
    for route in ROUTES:
        assert f"<b>{route.method}</b><code>{route.path}</code>" in text
    assert text.count("curl -s") == len(ROUTES)
