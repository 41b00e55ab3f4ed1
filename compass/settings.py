"""What can be set, each by an environment variable `COMPASS_<NAME>`; read when constructed, not at import."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The settings of one Compass service."""

    model_config = SettingsConfigDict(env_prefix="COMPASS_", frozen=True)

    data: Path = Field(Path("compass-data"), description="Folder of all collections.")
    cache: Path | None = Field(None, description="This node's cache; default: <data>/cache. Not on NFS.")
    host: str = Field("127.0.0.1", description="Address of Compass's own HTTP door.")
    port: int = Field(8000, ge=1, le=65535, description="Port of Compass's own HTTP door.")
    serve_port: int = Field(8001, ge=1, le=65535, description="Port of Ray Serve's HTTP proxy.")
    gateways: int = Field(1, ge=1, le=64, description="Gateway replicas.")
    api_key: SecretStr | None = Field(None, description="Wanted as `Authorization: Bearer <key>`; unset: open.")
    allowed_hosts: str = Field("", description="Further Host names of an open server, by comma.")
    max_body_bytes: int = Field(64_000_000, gt=0, description="Largest request body.")
    max_in_flight: int = Field(256, gt=0, description="Requests at once in one gateway; more get 429.")
    lease_s: float = Field(30.0, gt=0, description="How long a gateway may answer without a word from the router.")
    idle_exit_s: float = Field(60.0, gt=0, description="Actors end themselves after this long without a gateway.")
    checkpoint_s: float = Field(30.0, gt=0, description="How often a collection looks whether to checkpoint.")
    grace_s: float = Field(600.0, ge=0, description="How long replaced files outlive their replacement.")
    embed_timeout_s: float = Field(60.0, gt=0, description="One request to an embedding endpoint.")
    drop_guard_s: float = Field(0.0, ge=0, description="How long a former default wants ?confirm= to be dropped.")
    memory_reserve_bytes: int = Field(
        256_000_000, ge=-1, description="Memory of a node that spaces leave to others; -1: take what they need."
    )
    rebuild_actors: int = Field(2, ge=1, description="Ray Data's embed actors of one rebuild.")
    rebuild_local_rows: int = Field(200_000, ge=0, description="Chunks that a rebuild embeds itself meanwhile.")

    @field_validator("data", mode="before")
    @classmethod
    def _is_a_folder(cls, value: object) -> object:
        if "://" in str(value):
            raise ValueError(f"{value} is a URL; this version keeps its data in a folder, local or NFS")
        return value

    @property
    def cache_dir(self) -> Path:
        """Where this node keeps what can be derived again."""
        return self.cache or self.data / "cache"
