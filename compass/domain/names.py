"""Names and sizes that a collection or a space may have."""

from __future__ import annotations

import re

from compass.errors import InvalidRequestError

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
MIN_DIMS, MAX_DIMS = 1, 16_384
KEY_VARIABLE = re.compile(r"COMPASS_EMBED_KEY_[A-Z0-9_]{1,64}")


def check_name(what: str, name: str) -> str:
    """Return `name` if it may name a collection or a space; `what` is the noun of the message."""
    if not NAME.fullmatch(name):
        raise InvalidRequestError(
            f"{what} name {name!r} does not match [a-z0-9][a-z0-9_-]{{0,62}}: lower-case letters, digits, "
            "'_' and '-', at most 63, the first a letter or a digit",
            {"errors": [{"field": "name", "detail": f"{name!r} is not a valid name"}]},
        )
    return name


def check_dims(dims: int) -> int:
    """Return `dims` if a space may have that many."""
    if not MIN_DIMS <= dims <= MAX_DIMS:
        raise InvalidRequestError(
            f"dims {dims} is out of {MIN_DIMS}..{MAX_DIMS}",
            {"errors": [{"field": "dims", "detail": f"{dims} is out of {MIN_DIMS}..{MAX_DIMS}"}]},
        )
    return dims


def check_key_variable(name: str) -> str:
    """Return `name` if it may name the environment variable of an endpoint's key.

    A request names the variable, so any other prefix would let a caller send the server's secrets to a URL
    of their choice.
    """
    if not KEY_VARIABLE.fullmatch(name):
        raise InvalidRequestError(
            f"api_key_env {name!r} must begin with COMPASS_EMBED_KEY_ (capitals, digits, '_')",
            {"errors": [{"field": "api_key_env", "detail": "must begin with COMPASS_EMBED_KEY_"}]},
        )
    return name
