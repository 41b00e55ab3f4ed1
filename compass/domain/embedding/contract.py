"""What an embedding endpoint's answers mean, and what Compass does about each: rules without a socket.

The contract is `POST {"inputs": [text, …]}` → `[[float, …], …]`, as text-embeddings-inference (TEI) speaks
it. Any other server that answers so will do; what only TEI understands is sent to TEI alone.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any, Literal, Protocol

from compass.domain.chunk import FloatMatrix
from compass.domain.embedding.endpoint_stats import EndpointStats
from compass.domain.space import SpaceConfig
from compass.errors import BudgetSpentError

Kind = Literal["query", "document"]

CONTROL_TEXT = "hello world"  # no embedding model has a reason to refuse this one
REASON_CHARS = 300  # of what a server said, in an error: enough to act on, too little to carry a document

PAGE_BYTES = 1 << 13  # of a page, that are looked at for a title and for words

_MARKUP = re.compile(r"<!--.*?-->|<(script|style)\b.*?</\1\s*>|<[!/?a-z][^>]*>", re.DOTALL | re.IGNORECASE)
_TITLE = re.compile(r"<title\b[^>]*>([^<]*)", re.IGNORECASE)
_IS_PAGE = re.compile(r"\s*(<!doctype|<!--|<\?xml|<html|<head|<body)", re.IGNORECASE)
_MAX_BATCH = re.compile(r"maximum allowed batch size (\d{1,9})")


class Embedder(Protocol):
    """Turns texts into vectors of one space."""

    async def embed(self, texts: Sequence[str]) -> FloatMatrix:
        """One row per text, in order: float32, shape (n, dims), checked, and normalised for cosine.

        Raises:
            EmbeddingError: the endpoint failed, refused or lied; no row is returned then.
        """

    async def describe(self) -> list[ServerInfo]:
        """What each of its servers says of itself now, in their order; `ServerInfo()` of one that says nothing.

        Raises:
            EndpointUnavailableError: one is not up.
        """

    def endpoints(self) -> list[EndpointStats]:
        """How each server does, since the embedder was made; empty where there is none outside this process."""

    async def close(self) -> None:
        """Let go of connections; the embedder is not used afterwards."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """What became of a list of texts, each counted once.

    Attributes:
        rows: Positions of the texts that have a vector, ascending.
        vectors: float32, shape (len(rows), dims); row i belongs to text rows[i].
        refused: The reason, by position, for each text that the endpoint refuses for itself.
        stopped: Why the other texts were not sent; None: there are no others.
    """

    rows: list[int]
    vectors: FloatMatrix
    refused: dict[int, str]
    stopped: BudgetSpentError | None = None


class Verdict(Enum):
    """What an answer's status says, as far as the client's next step goes."""

    ROWS = "rows"  # read the body
    TOO_MANY = "too many"  # more inputs than it ever takes: halve, and remember
    TOO_LARGE = "too large"  # more bytes than it takes: halve this request
    REFUSED = "refused"  # it will not take one of these inputs
    BACKEND = "backend"  # the model failed: maybe the moment, maybe an input
    BUSY = "busy"  # down, starting or overloaded: the same request may succeed later
    FORBIDDEN = "forbidden"  # no request of this form will ever succeed


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """What a server wrote beside a status that is not 200."""

    reason: str
    json: bool = False
    error_type: str | None = None


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What `GET /info` proves; None where the server does not say.

    Attributes:
        tei: Whether it is TEI, which understands more than `inputs`.
        max_batch: Inputs of one request.
        max_input: Tokens of one input.
        pooling: How a model's token vectors become one, such as "mean" or "cls".
    """

    tei: bool = False
    max_batch: int | None = None
    max_input: int | None = None
    model_id: str | None = None
    model_sha: str | None = None
    pooling: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's answer to a caller without HTTP: rows and their tokens (200), or why there are none.

    Attributes:
        status: As over HTTP.
        rows: float32, shape (n, dims).
        error, error_type: As TEI's JSON has them; no `error_type` where TEI answers in plain text.
    """

    status: int
    rows: FloatMatrix | None = None
    tokens: int = 0
    error: str = ""
    error_type: str | None = None


def read_error_body(body: bytes) -> ErrorBody:
    """The reason in an error's body: TEI's, FastAPI's and vLLM's JSON; a page's title; or the text, cut short."""
    try:
        document = json.loads(body)
    except ValueError:
        return ErrorBody(shorten(_without_markup(body[:PAGE_BYTES].decode("utf-8", "replace"))))
    if not isinstance(document, dict):
        return ErrorBody(shorten(str(document)), json=True)
    reason = document.get("error", document.get("detail", document.get("message", "")))
    if isinstance(reason, dict) and "message" in reason:  # as OpenAI nests it, and vLLM after it
        reason = reason["message"]
    error_type = document.get("error_type")
    return ErrorBody(shorten(str(reason)), True, error_type if isinstance(error_type, str) else None)


def classify_answer(status: int, error: ErrorBody) -> Verdict:
    """What a status means, by TEI's table; for other servers the nearest row of it."""
    match status:
        case 200:
            return Verdict.ROWS
        case 413 | 422 if "batch size" in error.reason.lower():
            return Verdict.TOO_MANY
        case 413:
            return Verdict.TOO_LARGE
        case 400:
            return Verdict.REFUSED
        case 422:  # plain text: the JSON does not fit, whatever the input
            return Verdict.REFUSED if error.json else Verdict.FORBIDDEN
        case 424:
            return Verdict.BACKEND
        case 408 | 425 | 429:
            return Verdict.BUSY
    return Verdict.BUSY if status >= 500 else Verdict.FORBIDDEN


def read_info(status: int, body: bytes) -> ServerInfo:
    """What `/info` proves; a server that has none, or another kind of page there, proves nothing."""
    try:
        document = json.loads(body) if status == 200 else None
    except ValueError:
        document = None
    if not isinstance(document, dict):
        return ServerInfo()
    max_batch = _count(document.get("max_client_batch_size"))
    tei = max_batch is not None and {"model_id", "model_type", "max_concurrent_requests"} <= document.keys()
    kind = document.get("model_type")
    embedding = kind.get("embedding") if isinstance(kind, dict) else None
    return ServerInfo(
        tei,
        max_batch,
        _count(document.get("max_input_length")),
        _text(document.get("model_id")),
        _text(document.get("model_sha")),
        _text(embedding.get("pooling")) if isinstance(embedding, dict) else None,
    )


def smaller_batch(size: int, error: ErrorBody) -> int:
    """The size to go on with after `size` inputs were too many: the limit it named, else half. At least 1."""
    limit_named = _MAX_BATCH.search(error.reason)
    limit = int(limit_named[1]) if limit_named else size // 2
    return max(1, min(limit, size - 1))


def request_options(config: SpaceConfig, kind: Kind, info: ServerInfo) -> dict[str, Any]:
    """The members sent beside `inputs`: those the space sets, and `truncate` to a proven TEI.

    TEI refuses a text that is longer than its model reads unless it is told to truncate. A server that is
    not TEI may refuse members that it does not know, so it gets none that the user has not asked for.
    """
    options: dict[str, Any] = {"truncate": True} if info.tei else {}
    space_options = {"normalize": config.normalize, "truncate": config.truncate, "dimensions": config.dimensions}
    options |= {name: value for name, value in space_options.items() if value is not None}
    prompt = config.query_prompt_name if kind == "query" else config.document_prompt_name
    if prompt is not None:
        options["prompt_name"] = prompt
    return options


def retry_after_s(header: str | None, now: float) -> float | None:
    """Seconds that a `Retry-After` header asks for, or None; `now` is Unix time. RFC 9110, 10.2.3."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - now)
    except ValueError:
        return None


def _without_markup(text: str) -> str:
    """Of an HTML page its title, or its words where it has none; any other text as it is."""
    if not _IS_PAGE.match(text):
        return text
    title = _TITLE.search(text)
    words = html.unescape(title[1]).strip() if title else ""
    return words or html.unescape(_MARKUP.sub(" ", text))


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _text(value: object) -> str | None:
    return shorten(value) if isinstance(value, str) and value else None


def shorten(text: str) -> str:
    """One line of at most `REASON_CHARS`."""
    line = " ".join(text.split())
    return line if len(line) <= REASON_CHARS else line[: REASON_CHARS - 1] + "…"
