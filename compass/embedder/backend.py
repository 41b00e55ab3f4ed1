"""A model of sentence-transformers behind TEI's contract."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

from compass.domain.chunk import FloatMatrix
from compass.domain.embedding.contract import CONTROL_TEXT
from compass.domain.space import prepare_vectors
from compass.embedder.batching import Pool, Treatment
from compass.embedder.config import EmbedderConfig
from compass.embedder.model import SentenceModel, Side
from compass.embedder.tei import (
    Computed,
    EmbedRequest,
    Input,
    Limits,
    ModelInfo,
    RefusalError,
    invalid,
    too_long,
)
from compass.embedder.tei_server import TeiServer
from compass.errors import InvalidRequestError

CPU_BATCH = 16  # texts: a CPU is no quicker with more, and a query behind a batch waits for all of it


class Model(Protocol):
    """What a backend asks of a model; `SentenceModel`."""

    info: ModelInfo

    @property
    def prompts(self) -> Mapping[str, str]:
        """By name."""

    def count(self, texts: Sequence[str], prompt: str = "") -> list[int]:
        """Tokens of each text."""

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""

    def encode(self, texts: Sequence[str], prompt: str = "", side: Side = "right") -> FloatMatrix:
        """Rows of one batch."""


class SentenceBackend:
    """The `Backend` of a model: counts tokens in one thread while another one embeds.

    Args:
        model: Loaded.
        limits: Of batches, and whether to truncate.
        default_prompt_name: The prompt of requests that name none.

    Raises:
        InvalidRequestError: the model has no such prompt.
    """

    def __init__(self, model: Model, limits: Limits, default_prompt_name: str | None = None) -> None:
        if default_prompt_name is not None and default_prompt_name not in model.prompts:
            raise InvalidRequestError(_no_prompt(default_prompt_name, model.prompts))
        self._model, self._limits, self._default = model, limits, default_prompt_name
        self._counting = ThreadPoolExecutor(1, "tokenizer")
        self._pool = Pool(model.encode, model.info.dims, limits.max_batch_tokens, limits.max_batch_requests)

    def model(self) -> ModelInfo:
        """What it is."""
        return self._model.info

    async def embed(self, inputs: Sequence[Input], request: EmbedRequest) -> Computed:
        """As `Backend.embed`."""
        prompt, longest = self._prompt(request.prompt_name), self._model.info.max_input_length
        loop = asyncio.get_running_loop()
        texts, tokens = await loop.run_in_executor(self._counting, self._read, inputs, prompt)
        truncate = self._limits.auto_truncate if request.truncate is None else request.truncate
        if not truncate and max(tokens) > longest:
            raise too_long(max(tokens), longest)
        side: Side = "left" if request.truncation_direction.lower() == "left" else "right"
        treatments = [Treatment(prompt, side if count > longest else "right") for count in tokens]
        read = [min(count, longest) for count in tokens]
        rows = await self._pool.embed(texts, read, treatments)
        if request.dimensions is not None:
            rows = rows[:, : request.dimensions]
        return Computed(prepare_vectors(rows, "cosine") if request.normalize else rows, sum(read))

    async def is_healthy(self) -> bool:
        """Whether the model embeds; it is tried only if it has failed at the last text."""
        if self._pool.failed:
            try:
                await self._pool.embed([CONTROL_TEXT], [1], [Treatment()])
            except RefusalError:
                return False
        return True

    def close(self) -> None:
        """End its threads."""
        self._counting.shutdown(wait=False)
        self._pool.close()

    def _prompt(self, name: str | None) -> str:
        name = self._default if name is None else name
        if name is None:
            return ""
        if name not in self._model.prompts:
            raise invalid(_no_prompt(name, self._model.prompts))
        return self._model.prompts[name]

    def _read(self, inputs: Sequence[Input], prompt: str) -> tuple[list[str], list[int]]:
        """The texts, and how many tokens each has."""
        try:
            texts = [one if isinstance(one, str) else self._model.text_of(one) for one in inputs]
            return texts, self._model.count(texts, prompt)
        except Exception as error:  # noqa: BLE001 - a tokenizer in Rust raises nothing narrower
            raise RefusalError(422, f"Tokenization error: {error}", "Tokenizer") from None


def open_server(config: EmbedderConfig, key: str | None) -> TeiServer:
    """Load the model, and serve it; blocks for seconds.

    Raises:
        UnavailableError: the libraries are not installed, or there is no such model.
        InvalidRequestError: the model has no such default prompt.
    """
    model = SentenceModel(
        config.model,
        revision=config.revision,
        device=config.device,
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
    )
    limits = config.limits()
    if limits.max_batch_requests is None and model.device == "cpu":
        limits = replace(limits, max_batch_requests=CPU_BATCH)
    return TeiServer(SentenceBackend(model, limits, config.default_prompt_name), limits, api_key=key)


def _no_prompt(name: str, prompts: Mapping[str, str]) -> str:
    return f"`prompt_name` {name!r} is not one of the model's prompts: {', '.join(map(repr, prompts)) or 'none'}"
