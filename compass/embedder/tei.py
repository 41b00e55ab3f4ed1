"""The contract of text-embeddings-inference (TEI), as a server has it: its requests, refusals and limits.

Here once for every model that Compass serves, the built-in one (`compass.testing.embed_server`) and those of
sentence-transformers (`compass.embedder`). A model is a `Backend`; `compass.embedder.tei_server`
puts it behind HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
from starlette.responses import JSONResponse, PlainTextResponse, Response

from compass.domain.chunk import FloatMatrix

Input = str | list[int]  # a text, or the tokens of one


class EmbedRequest(msgspec.Struct):
    """The body of `POST /embed`, as TEI's OpenAPI document has it."""

    inputs: str | list[str | int | list[int]]
    normalize: bool = True
    truncate: bool | None = None
    truncation_direction: str = "Right"
    prompt_name: str | None = None
    dimensions: int | None = None


class PlainRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body that a server takes which knows `inputs` alone."""

    inputs: str | list[str]


class RefusalError(Exception):
    """An answer that is no rows.

    Args:
        status: Of HTTP.
        error: One sentence.
        error_type: TEI's name for the kind; None where TEI answers in plain text, because its HTTP library does.
    """

    def __init__(self, status: int, error: str, error_type: str | None = None) -> None:
        super().__init__(status, error, error_type)
        self.status, self.error, self.error_type = status, error, error_type

    def response(self) -> Response:
        """As HTTP has it."""
        if self.error_type is None:
            return PlainTextResponse(self.error, self.status)
        return JSONResponse({"error": self.error, "error_type": self.error_type}, self.status)


def invalid(error: str) -> RefusalError:
    """The refusal of an input, or of an option, that the model cannot take."""
    return RefusalError(422, f"Input validation error: {error}", "Validation")


def too_long(tokens: int, longest: int) -> RefusalError:
    """The refusal of an input that is longer than the model reads."""
    return invalid(f"`inputs` must have less than {longest} tokens. Given: {tokens}")


def does_not_fit(why: str) -> RefusalError:
    """The refusal of JSON that is not the contract's: in plain text, as TEI's HTTP library has it."""
    return RefusalError(422, f"Failed to deserialize the JSON body into the target type: {why}")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server takes; the defaults are TEI's.

    Attributes:
        max_client_batch_size: Inputs in one request; more: 422.
        max_concurrent_requests: Inputs at work at once, each takes a permit; more: 429, at once.
        max_batch_tokens: Tokens, padding included, that the model is given at once.
        max_batch_requests: Inputs that the model is given at once; None: as the tokens allow.
        payload_limit: Bytes of a body; more: 413.
        auto_truncate: Whether an input that is too long is cut where the request does not say.
    """

    max_client_batch_size: int = 32
    max_concurrent_requests: int = 512
    max_batch_tokens: int = 16_384
    max_batch_requests: int | None = None
    payload_limit: int = 2_000_000
    auto_truncate: bool = False


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model is.

    Attributes:
        model_id: Its name or folder.
        model_sha: The commit of a model of the hub.
        dtype: Such as "float16".
        pooling: How token vectors become one: "mean", "cls", …
        dims: Numbers in a vector.
        max_input_length: Tokens of one input.
    """

    model_id: str
    model_sha: str | None
    dtype: str
    pooling: str
    dims: int
    max_input_length: int


@dataclass(frozen=True, slots=True)
class Computed:
    """Vectors: float32, shape (n, dims), one row an input, and the tokens that were read for them."""

    rows: FloatMatrix
    tokens: int


class Backend(Protocol):
    """A model behind the contract."""

    def model(self) -> ModelInfo:
        """What it is."""

    async def embed(self, inputs: Sequence[Input], request: EmbedRequest) -> Computed:
        """The rows of inputs, none of them empty, `request.normalize` and `request.dimensions` heeded.

        Raises:
            RefusalError: an input does not fit (422), or the model failed (424).
        """

    async def is_healthy(self) -> bool:
        """Whether it can embed."""
