"""What can be set of an embedder: the arguments of `serve run compass.embedder.app:build`."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from compass.embedder.tei import Limits

KEY_VARIABLE = "COMPASS_EMBEDDER_API_KEY"  # of the environment, never in a configuration


class EmbedderConfig(BaseModel):
    """An embedder's arguments, by their names; numbers may be given as text, as `serve run` does."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str = Field(min_length=1, description="Name on the hub, or a folder that every node has.")
    revision: str | None = Field(None, description="Commit, tag or branch on the hub.")
    device: str | None = Field(None, description="Such as cpu or cuda:0; unset: a GPU if there is one.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field("auto", description="auto: float16 on a GPU.")
    trust_remote_code: bool = Field(False, description="Run code that comes with the model.")
    default_prompt_name: str | None = Field(None, description="The model's prompt where a request names none.")
    auto_truncate: bool = Field(False, description="Cut what is too long where a request does not say.")
    max_client_batch_size: int = Field(32, ge=1, description="Inputs in one request.")
    max_concurrent_requests: int = Field(512, ge=1, description="Inputs at work at once in one replica.")
    max_batch_tokens: int = Field(16_384, ge=1, description="Tokens that the model is given at once.")
    max_batch_requests: int | None = Field(None, ge=1, description="Inputs that the model is given at once.")
    payload_limit: int = Field(2_000_000, ge=1, description="Bytes of a request's body.")
    min_replicas: int = Field(1, ge=0, description="Replicas at least.")
    max_replicas: int = Field(1, ge=1, description="Replicas at most.")
    target_ongoing_requests: float = Field(4.0, gt=0, description="Requests a replica should have; more: scale up.")
    num_cpus: float = Field(1.0, ge=0, description="CPUs that a replica reserves; torch uses as many threads.")
    num_gpus: float = Field(0.0, ge=0, description="GPUs that a replica reserves.")

    def limits(self) -> Limits:
        """What one replica takes at once."""
        return Limits(
            max_client_batch_size=self.max_client_batch_size,
            max_concurrent_requests=self.max_concurrent_requests,
            max_batch_tokens=self.max_batch_tokens,
            max_batch_requests=self.max_batch_requests,
            payload_limit=self.payload_limit,
            auto_truncate=self.auto_truncate,
        )


def api_key() -> str | None:
    """The key that this process's environment sets, if it does."""
    return os.environ.get(KEY_VARIABLE, "").strip() or None
