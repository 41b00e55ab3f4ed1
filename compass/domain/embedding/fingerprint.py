"""What built a space's vectors, and whether an endpoint would build the same ones.

A fingerprint is what the endpoint's server says of its model, and what Compass does to a text before it is sent.
The second half is the space's config, which no rebuild changes; so two fingerprints of one space can differ only
in what the server says. A server that says nothing is judged by its vectors alone: see `ModelCheck.cosine`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

from compass.domain.embedding.contract import ServerInfo
from compass.domain.space import BuiltBy, Space, SpaceConfig
from compass.errors import FingerprintMismatchError

SAME_MODEL = 0.999  # the least cosine, of texts embedded again, at which two endpoints count as one model
DIGEST_CHARS = 16


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Of a space or of an endpoint that serves it. None in the first three: the server does not say.

    Attributes:
        model_id, model_sha, pooling: As the server's `/info` has them.
        dims: Numbers in a vector.
        query_prompt_name to dimensions: As in `SpaceConfig`.
    """

    model_id: str | None
    model_sha: str | None
    pooling: str | None
    dims: int
    query_prompt_name: str | None
    document_prompt_name: str | None
    query_prompt: str | None
    document_prompt: str | None
    template: str | None
    normalize: bool | None
    truncate: bool | None
    dimensions: int | None

    @staticmethod
    def of(config: SpaceConfig, served: BuiltBy) -> Fingerprint:
        """The fingerprint of a model that is used as the space says."""
        names = [name for name in Fingerprint.__slots__ if name not in ("model_id", "model_sha", "pooling")]
        return Fingerprint(**asdict(served), **{name: getattr(config, name) for name in names})

    def to_json(self) -> dict[str, Any]:
        """What is known, as plain JSON values."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def digest(self) -> str:
        """The first 64 bits of the SHA-256 of the fields, in hex."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_CHARS]


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """What an endpoint says of its model, and whether it embeds as that model does.

    Attributes:
        endpoint: Without secrets.
        served: What its server says; None where it did not answer.
        cosine: The least one between stored vectors and its vectors of the same texts; None without any.
        error: Why there is no `served` or no `cosine`.
    """

    endpoint: str
    served: BuiltBy | None = None
    cosine: float | None = None
    error: str | None = None


def model_of(info: ServerInfo) -> BuiltBy:
    """What of a server's `/info` belongs to a fingerprint."""
    return BuiltBy(info.model_id, info.model_sha, info.pooling)


def agree(one: BuiltBy, other: BuiltBy) -> bool:
    """Whether two servers may serve one model: what both of them say is the same."""
    pairs = zip(astuple(one), astuple(other), strict=True)
    return all(a == b for a, b in pairs if a is not None and b is not None)


def check_model(space: Space, model: BuiltBy, who: str, advice: str) -> None:
    """Compare a server's model with the one that built the space.

    Raises:
        FingerprintMismatchError: it is another one; both fingerprints are in the fields.
    """
    recorded = space.built_by
    if recorded is None or agree(recorded, model):
        return
    wanted, served = asdict(recorded), asdict(model)
    differences = ", ".join(f"{k} {served[k]!r}, not {wanted[k]!r}" for k in wanted if wanted[k] != served[k])
    raise FingerprintMismatchError(
        f"{who} does not serve the model of vector space {space.name!r}: it has {differences}; {advice}",
        {"space": space.name, **_fingerprints(space, model)},
    )


def agreed_model(space: Space, checks: Sequence[ModelCheck], *, accept: bool, advice: str) -> BuiltBy | None:
    """What to record as the builder of a space that these endpoints are to serve; None: nothing is known.

    An endpoint that does not answer is checked when it does. `accept`: a server that names its model
    otherwise is taken, if its vectors agree with the stored ones or none are stored.

    Raises:
        FingerprintMismatchError: one is another model than the space's, or than another one of them.
    """
    for check in checks:
        if check.cosine is not None and check.cosine < SAME_MODEL:
            raise FingerprintMismatchError(
                f"{check.endpoint} does not serve the model of vector space {space.name!r}: it embeds stored texts "
                f"otherwise (cosine {check.cosine:.4f}, wanted {SAME_MODEL}); {advice}",
                {"space": space.name, "cosine": round(check.cosine, 4), **_fingerprints(space, check.served)},
            )
    known = None if accept else space.built_by
    for check in checks:
        if check.served is not None:
            known = check.served if known is None else known
            check_model(space.built(known), check.served, check.endpoint, advice)
            known = _completed(known, check.served)
    return known


def _completed(known: BuiltBy, other: BuiltBy) -> BuiltBy:
    """What is known of a model, completed by what another server of it says."""
    return BuiltBy(*(a if a is not None else b for a, b in zip(astuple(known), astuple(other), strict=True)))


def _fingerprints(space: Space, served: BuiltBy | None) -> Mapping[str, Any]:
    """The fields of an error: the fingerprint of the space and of the server, where known."""
    builders = {"recorded": space.built_by, "found": served}
    return {k: Fingerprint.of(space.config, v).to_json() for k, v in builders.items() if v is not None}
