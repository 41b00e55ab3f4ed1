"""Everything that can go wrong, as one tree.

    CompassError
    ├── InvalidRequestError         422  a field does not fit
    │   ├── MalformedBodyError      400  not JSON
    │   ├── BodyTooLargeError       413
    │   └── WrongContentTypeError   415
    ├── UnauthorizedError           401
    ├── WrongHostError              421
    ├── NotFoundError               404
    ├── NotImplementedYetError      501
    ├── ConflictError               409
    │   ├── CollectionExistsError, SpaceExistsError
    │   ├── SpaceNotActiveError, SpaceLagsError
    │   ├── EpochMismatchError, BareVectorError
    │   ├── RebuildRunningError, DefaultSpaceError
    │   ├── SpaceQuarantinedError, ConfirmationNeededError
    │   ├── FingerprintMismatchError
    │   └── BudgetSpentError
    ├── UnavailableError            503  a retry helps
    │   ├── TakenOverError               another process writes this collection now
    │   └── OverloadedError         429
    ├── EmbeddingError              what an embedding endpoint did
    │   ├── EndpointUnavailableError 503  down, overloaded, timed out: a retry helps
    │   ├── EndpointRefusedError    422  it refuses this very input
    │   ├── EndpointAnswerError     502  it lied: wrong count, wrong dims, NaN, zeros
    │   └── EndpointForbiddenError  502  it wants a key, or is not an /embed endpoint
    ├── StorageError                500  a file is not what its checksum or schema says
    └── InsufficientMemoryError     507  a space does not fit the memory that its node has

Each leaf knows its HTTP status and whether a retry helps. `detail` is a sentence for a person: what was
wrong, with which value, what to do. `fields` is what a program needs. Both are in `args`, so that an error
leaves an actor as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class CompassError(Exception):
    """The root of all errors that Compass raises on purpose.

    Args:
        detail: One sentence for a person.
        fields: JSON-able values for a program; they become members of the problem document.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, fields: Mapping[str, Any] | None = None) -> None:
        super().__init__(detail, dict(fields or {}))

    @property
    def detail(self) -> str:
        """One sentence for a person."""
        return str(self.args[0])

    @property
    def fields(self) -> dict[str, Any]:
        """What a program needs, JSON-able."""
        return dict(self.args[1])

    def __str__(self) -> str:
        return self.detail

    def problem(self) -> dict[str, Any]:
        """The error as an RFC 9457 problem document."""
        return {
            "type": self.type,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.fields,
        }


class InvalidRequestError(CompassError):
    """A field does not fit; nothing was written. `fields["errors"]`: [{index?, field, detail}]."""

    status, type, title = 422, "invalid-request", "The request does not fit"


class MalformedBodyError(InvalidRequestError):
    """The body is not JSON."""

    status, type, title = 400, "malformed-body", "The body is not valid JSON"


class BodyTooLargeError(InvalidRequestError):
    """The body is over the limit."""

    status, type, title = 413, "body-too-large", "The body is too large"


class WrongContentTypeError(InvalidRequestError):
    """A JSON body wants Content-Type: application/json."""

    status, type, title = 415, "wrong-content-type", "Unsupported content type"


class UnauthorizedError(CompassError):
    """The API key is missing or wrong."""

    status, type, title = 401, "unauthorized", "Unauthorized"


class WrongHostError(CompassError):
    """The Host header names a host that is not ours (DNS rebinding)."""

    status, type, title = 421, "wrong-host", "Misdirected request"


class NotFoundError(CompassError):
    """The named thing does not exist."""

    status, type, title = 404, "not-found", "Not found"


class NotImplementedYetError(CompassError):
    """The interface names it, this version does not have it."""

    status, type, title = 501, "not-implemented", "Not implemented"


class ConflictError(CompassError):
    """The state of the collection forbids it."""

    status, type, title = 409, "conflict", "Conflict"


class CollectionExistsError(ConflictError):
    """A collection of this name exists."""

    type, title = "collection-exists", "The collection exists"


class SpaceExistsError(ConflictError):
    """A space of this name exists."""

    type, title = "space-exists", "The vector space exists"


class SpaceNotActiveError(ConflictError):
    """The space is building or failed."""

    type, title = "space-not-active", "The vector space is not active"


class SpaceLagsError(ConflictError):
    """The space has not reached the frontier in time."""

    type, title = "space-lags", "The vector space lags behind"


class SpaceQuarantinedError(ConflictError):
    """Chunks of the space are quarantined, and nobody accepted that."""

    type, title = "space-quarantined", "Chunks of the vector space are quarantined"


class ConfirmationNeededError(ConflictError):
    """The space was the default a short while ago; the caller must name it once more."""

    type, title = "confirmation-needed", "Confirm by the name"


class EpochMismatchError(ConflictError):
    """The default has changed since the caller looked."""

    type, title = "epoch-mismatch", "The epoch has changed"


class BareVectorError(ConflictError):
    """A vector without a space, after the default has changed."""

    type, title = "bare-vector", "A bare vector is ambiguous after a swap"


class RebuildRunningError(ConflictError):
    """A rebuild of this space runs already."""

    type, title = "rebuild-running", "A rebuild is running"


class DefaultSpaceError(ConflictError):
    """The default space cannot be dropped or restarted."""

    type, title = "default-space", "The space is the default"


class FingerprintMismatchError(ConflictError):
    """The endpoint's model is not the one that built the space."""

    type, title = "fingerprint-mismatch", "The endpoint's model differs"


class BudgetSpentError(ConflictError):
    """What would be sent next might cost more than is left of a rebuild's budget."""

    type, title = "budget-spent", "The budget is spent"


class UnavailableError(CompassError):
    """A part of the service does not answer now; a retry helps."""

    status, type, title, retryable = 503, "unavailable", "Temporarily unavailable", True


class TakenOverError(UnavailableError):
    """Another process has taken over this collection; this writer has stopped for good."""

    type, title = "taken-over", "Another process writes this collection"


class OverloadedError(UnavailableError):
    """More requests at once than this gateway takes."""

    status, type, title = 429, "overloaded", "Too many requests"


class EmbeddingError(CompassError):
    """What an embedding endpoint did."""

    status, type, title = 502, "embedding", "The embedding endpoint failed"


class EndpointUnavailableError(EmbeddingError):
    """Down, overloaded or timed out, after retries."""

    status, type, title, retryable = (
        503,
        "endpoint-unavailable",
        "The embedding endpoint is unavailable",
        True,
    )


class EndpointRefusedError(EmbeddingError):
    """The endpoint refuses this very input; sending it again does not help."""

    status, type, title = 422, "endpoint-refused", "The embedding endpoint refused the input"


class EndpointAnswerError(EmbeddingError):
    """A 200 that is wrong: too few rows, wrong dims, NaN, a zero vector."""

    type, title = "endpoint-answer", "The embedding endpoint answered nonsense"


class EndpointForbiddenError(EmbeddingError):
    """It wants a key, redirects, or is no /embed endpoint."""

    type, title = "endpoint-forbidden", "The embedding endpoint turned the request down"


class StorageError(CompassError):
    """A stored file is not what its checksum or schema says."""

    type, title = "storage", "Damaged storage"


class InsufficientMemoryError(CompassError):
    """A space does not fit the memory of its node, and was left as it is. Fields: needed_bytes, free_bytes, node."""

    status, type, title = 507, "insufficient-memory", "The vector space does not fit the memory"
