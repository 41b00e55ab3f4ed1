"""The page at /docs: every route with its schemas and an example, without a script and without the internet."""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from compass.http.routes import JSON, ROUTES, Route

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733 }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem }
details { border: 1px solid #d5dce3; border-radius: 6px; margin: .5rem 0; padding: .4rem .8rem }
summary { cursor: pointer } summary span { color: #5b6b7a; margin-left: .6rem }
b { display: inline-block; min-width: 4.2rem; font-family: ui-monospace, monospace }
code, pre { font-family: ui-monospace, monospace; font-size: 13px }
pre { background: #f4f6f8; border-radius: 6px; padding: .7rem; overflow-x: auto }
a { color: #0b5cad }
"""


def docs_page(document: dict[str, Any]) -> tuple[str, str]:
    """The page for an OpenAPI document, and the Content-Security-Policy that allows its style and nothing else."""
    template = Template(files(__package__).joinpath("docs.html").read_text("utf-8"))
    page = template.substitute(
        style=_STYLE,
        version=escape(document["info"]["version"]),
        routes="\n".join(_route(route, document) for route in ROUTES),
        schemas="\n".join(_schema(*named) for named in sorted(document["components"]["schemas"].items())),
    )
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    nothing_else = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return page, f"default-src 'none'; style-src 'sha256-{digest}'; {nothing_else}"


def _route(route: Route, document: dict[str, Any]) -> str:
    operation = document["paths"][route.path][route.method.lower()]
    parts = [
        f"<details><summary><b>{route.method}</b><code>{escape(route.path)}</code>",
        f"<span>{escape(route.summary)}</span></summary>",
    ]
    query = [p["name"] for p in operation["parameters"] if p["in"] == "query"]
    if query:
        parts.append(f"<p>Query: <code>{escape(', '.join(query))}</code></p>")
    if route.body is not None:
        parts.append(f"<p>Body: {_link(operation['requestBody']['content']['application/json']['schema'])}</p>")
    content = operation["responses"][str(route.status)].get("content")
    answer = _answer(content) if content else "no body"
    for status in route.others:
        answer += f"; or {status}, {_answer(operation['responses'][str(status)]['content'])}"
    parts.append(f"<p>Answer: {route.status}, {answer}; else {_link({'$ref': '#/Problem'})}</p>")
    parts.append(f"<pre>{escape(_curl(route))}</pre></details>")
    return "".join(parts)


def _answer(content: dict[str, Any]) -> str:
    ((media_type, media),) = content.items()
    return _link(media["schema"]) if media_type == JSON else escape(media_type)


def _link(schema: dict[str, Any]) -> str:
    if schema.get("type") == "array":
        return f"list of {_link(schema['items'])}"
    name = escape(schema["$ref"].rpartition("/")[2])
    return f'<a href="#{name}">{name}</a>'


def _schema(name: str, schema: dict[str, Any]) -> str:
    text = escape(json.dumps(schema, indent=2, ensure_ascii=False))
    return f'<details id="{escape(name)}"><summary><b>{escape(name)}</b></summary><pre>{text}</pre></details>'


def _curl(route: Route) -> str:
    path = route.path.format(collection="docs", space="qwen3", id="1")
    method = "" if route.method in ("GET",) or (route.method == "POST" and route.curl) else f" -X {route.method}"
    line = f"curl -s{method} http://127.0.0.1:8000{path}"
    return f"{line} \\\n  -H 'Content-Type: application/json' \\\n  -d '{route.curl}'" if route.curl else line
