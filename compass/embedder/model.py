"""One model of sentence-transformers on one device: tokens counted, texts embedded. Plain calls that block."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from compass.domain.chunk import FloatMatrix
from compass.domain.embedding.contract import CONTROL_TEXT
from compass.embedder.tei import ModelInfo
from compass.errors import UnavailableError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Side = Literal["left", "right"]

INSTALL = "pip install 'compass-search[embedder]'"
UNBOUNDED = 1 << 20  # the longest input, in tokens, of a model that names no limit
POOLING_OF_TEI = {"lasttoken": "last_token"}  # the others are called alike


class SentenceModel:
    """A loaded model. `encode` is for one thread, `count` and `text_of` for another one.

    Args:
        name: On the hub, or a folder.
        revision: Of the hub's repository.
        device: None: a GPU if there is one, else the CPU.
        dtype: "auto": float16 on a GPU, float32 elsewhere.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        UnavailableError: the libraries are not installed, or there is no such model.
    """

    def __init__(
        self,
        name: str,
        *,
        revision: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        trust_remote_code: bool = False,
    ) -> None:
        torch, transformer = _libraries()
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        precise = dtype if dtype != "auto" else ("float16" if self.device.startswith("cuda") else "float32")
        try:
            self._model: SentenceTransformer = transformer(
                name,
                device=self.device,
                revision=revision,
                trust_remote_code=trust_remote_code,
                model_kwargs={"dtype": getattr(torch, precise)},
            )
        except (OSError, ValueError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UnavailableError(f"the model {name!r} cannot be loaded: {lines[0]}") from error
        self._model.to(getattr(torch, precise)).eval()
        if self._model.tokenizer is None:
            raise UnavailableError(f"the model {name!r} has no tokenizer: it is not one for texts")
        _drop_normalize(self._model)
        self._counting = _own_tokenizer(self._model.tokenizer)
        self._encoding = threading.Lock()
        dims = self.encode([CONTROL_TEXT]).shape[1]
        sha = getattr(getattr(self._model.transformers_model, "config", None), "_commit_hash", None)
        self.info = ModelInfo(name, sha, precise, _pooling(self._model), dims, _longest(self._model))

    @property
    def prompts(self) -> Mapping[str, str]:
        """The model's prompts, by name."""
        return dict(self._model.prompts)

    def count(self, texts: Sequence[str], prompt: str = "") -> list[int]:
        """Tokens of each text behind its prompt, with those that the model puts around them, nothing cut."""
        prompted = [prompt + text for text in texts]
        if hasattr(self._counting, "encode_batch_fast"):
            return [len(encoded) for encoded in self._counting.encode_batch_fast(prompted)]
        bare = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        return [len(ids) for ids in self._counting(prompted, truncation=False, padding=False, **bare)["input_ids"]]

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of an input that was given as tokens."""
        return str(self._counting.decode(list(tokens), skip_special_tokens=True))

    def encode(self, texts: Sequence[str], prompt: str = "", side: Side = "right") -> FloatMatrix:
        """One row per text, in one batch: float32, shape (n, dims), of the length that the model gives it.

        Args:
            texts: What is too long is cut.
            prompt: Put before each text.
            side: The side that is cut.
        """
        with self._encoding:
            if hasattr(self._model.tokenizer, "truncation_side"):
                self._model.tokenizer.truncation_side = side
            rows = self._model.encode(
                list(texts), prompt=prompt, batch_size=len(texts), show_progress_bar=False, convert_to_numpy=True
            )
        return np.asarray(rows, np.float32)


def _libraries() -> tuple[Any, Any]:
    """torch, and the class of a model; both take seconds to import, so only who needs them does."""
    try:
        import torch
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UnavailableError(f"an embedder needs sentence-transformers and torch: {INSTALL}") from error
    return torch, SentenceTransformer


def _drop_normalize(model: SentenceTransformer) -> None:
    """Take a last step away that makes rows of length 1: a request says by `normalize` whether it is taken."""
    from sentence_transformers.sentence_transformer.modules import Normalize

    if len(model) > 1 and isinstance(model[-1], Normalize):
        model.pop(-1)


def _own_tokenizer(tokenizer: Any) -> Any:
    """A copy that never cuts nor pads.

    A copy, because the tokenizers of transformers keep both settings inside: one thread that counts while
    another one encodes would change them under it.
    """
    own = copy.deepcopy(tokenizer)
    if hasattr(own, "no_truncation"):
        own.no_truncation()
        own.no_padding()
    return own


def _longest(model: SentenceTransformer) -> int:
    """Tokens of an input that the model reads; the tokenizers' word for "no limit" is a huge number."""
    longest = model.max_seq_length
    return int(longest) if longest is not None and longest < UNBOUNDED else UNBOUNDED


def _pooling(model: SentenceTransformer) -> str:
    """How token vectors become one, as TEI names it."""
    modes = next((module.pooling_mode for module in model if hasattr(module, "pooling_mode")), "mean")
    named = [modes] if isinstance(modes, str) else list(modes)
    return "+".join(POOLING_OF_TEI.get(mode, mode) for mode in named)
