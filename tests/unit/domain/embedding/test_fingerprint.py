"""A fingerprint is what a server says of its model, and what is done to a text before it is sent."""

from __future__ import annotations

import pytest

from compass.domain.embedding.contract import ServerInfo
from compass.domain.embedding.fingerprint import Fingerprint, ModelCheck, agree, agreed_model, check_model, model_of
from compass.domain.space import BuiltBy, Space, SpaceConfig
from compass.errors import FingerprintMismatchError

A, B = BuiltBy("a", "sha-1", "mean"), BuiltBy("b", "sha-2", "mean")


def space(built_by: BuiltBy | None = A, **config: object) -> Space:
    return Space("s-1", "s", SpaceConfig(8, "m", "http://m", **config), "active", 0.0, built_by=built_by)  # type: ignore[arg-type]


def check_of(served: BuiltBy | None, cosine: float | None = 1.0, endpoint: str = "http://m") -> ModelCheck:
    return ModelCheck(endpoint, served, cosine, None if served else "it is down")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (A, A, True),
        (A, B, False),
        (A, BuiltBy(), True),
        (A, BuiltBy("a"), True),
        (A, BuiltBy("a", "sha-2"), False),
        (A, BuiltBy(None, None, "cls"), False),
    ],
)
def test_servers_agree_when_all_that_both_say_is_the_same(one: BuiltBy, other: BuiltBy, same: bool) -> None:
    """What one of them does not say proves nothing against it."""
    assert agree(one, other) is agree(other, one) is same


def test_info_tells_who_built_a_space() -> None:
    """Only what belongs to the model counts: a limit of the server may change."""
    info = ServerInfo(True, 32, 512, "a", "sha-1", "mean")
    assert model_of(info) == A


def test_the_digest_tells_spaces_apart_that_read_texts_otherwise() -> None:
    """A prompt, a template, an option or the model's name changes it; nothing else does."""
    of = [
        Fingerprint.of(space(**config).config, built_by).digest  # type: ignore[arg-type]
        for built_by, config in [
            (A, {}),
            (B, {}),
            (A, {"template": "{title} {text}"}),
            (A, {"document_prompt": "passage: "}),
            (A, {"query_prompt_name": "query"}),
            (A, {"normalize": True}),
            (A, {"truncate": False}),
        ]
    ]
    assert len(set(of)) == len(of)
    assert of[0] == Fingerprint.of(space(api_key_env="COMPASS_EMBED_KEY_X").config, A).digest


def test_a_mismatch_names_what_differs_and_holds_both() -> None:
    """Whoever reads it need not look anywhere else."""
    with pytest.raises(FingerprintMismatchError, match="model_id 'b', not 'a'") as refused:
        check_model(space(), B, "the endpoint", "do this")
    assert refused.value.fields["recorded"]["model_sha"] == "sha-1"
    assert refused.value.fields["found"]["model_sha"] == "sha-2"
    check_model(space(None), B, "the endpoint", "")


def test_endpoints_of_one_run_must_agree_among_each_other() -> None:
    """Two servers of different models in one list would build a space of nonsense."""
    with pytest.raises(FingerprintMismatchError, match="http://second"):
        agreed_model(space(None), [check_of(A, None), check_of(B, None, "http://second")], accept=False, advice="")
    assert agreed_model(space(None), [check_of(BuiltBy(), None), check_of(A, None)], accept=False, advice="") == A


def test_a_silent_endpoint_is_not_checked() -> None:
    """It is when it answers; with nobody answering nothing is known."""
    assert agreed_model(space(None), [check_of(None)], accept=False, advice="") is None
    assert agreed_model(space(), [check_of(None), check_of(A)], accept=False, advice="") == A


def test_vectors_decide_whatever_the_server_says() -> None:
    """A cosine below 0.999 is another model, and no word takes it."""
    for accept in (False, True):
        with pytest.raises(FingerprintMismatchError, match=r"cosine 0\.9980"):
            agreed_model(space(), [check_of(A, 0.998)], accept=accept, advice="")
    assert agreed_model(space(), [check_of(A, 0.9991)], accept=False, advice="") == A


def test_a_new_name_is_taken_when_it_is_accepted() -> None:
    """And refused when it is not."""
    with pytest.raises(FingerprintMismatchError):
        agreed_model(space(), [check_of(B)], accept=False, advice="")
    assert agreed_model(space(), [check_of(B)], accept=True, advice="") == B
