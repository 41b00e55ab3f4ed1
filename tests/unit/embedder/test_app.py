"""The Serve application of an embedder is built from plain arguments, as `serve run` gives them."""

from __future__ import annotations

from typing import Any

import pytest

from compass.embedder.app import build
from compass.embedder.config import EmbedderConfig, api_key
from compass.errors import InvalidRequestError


def _deployment(**args: Any) -> Any:
    return build(args)._bound_deployment


def test_the_model_is_enough() -> None:
    """One replica on one CPU, TEI's limits."""
    deployment = _deployment(model="m")
    assert deployment.ray_actor_options["num_cpus"] == 1
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 1)
    assert deployment.max_ongoing_requests > 512, "so that the permits refuse, at once, and Serve does not queue"


def test_arguments_may_be_text() -> None:
    """`serve run … num_gpus=1 max_replicas=4` gives text."""
    deployment = _deployment(model="m", num_gpus="0.5", max_replicas="4", min_replicas="0", auto_truncate="true")
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (0, 4)
    assert deployment.ray_actor_options["num_gpus"] == 0.5
    (config,) = deployment.init_args
    assert EmbedderConfig(**config).auto_truncate is True


@pytest.mark.parametrize(
    ("args", "detail"),
    [
        ({}, "model: Field required"),
        ({"model": "m", "modle": "n"}, "modle: Extra inputs are not permitted"),
        ({"model": "m", "max_replicas": "many"}, "max_replicas: Input should be a valid integer"),
        ({"model": "m", "api_key": "secret"}, "api_key: Extra inputs are not permitted"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(args: dict[str, Any], detail: str) -> None:
    """Before anything is deployed; its value is not repeated, because it may be a key."""
    with pytest.raises(InvalidRequestError, match=detail) as caught:
        build(args)
    assert "secret" not in caught.value.detail


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is in no configuration that Serve keeps and shows."""
    monkeypatch.setenv("COMPASS_EMBEDDER_API_KEY", " k ")
    assert api_key() == "k"
    assert "k" not in str(_deployment(model="m").init_args).split("'")
    monkeypatch.setenv("COMPASS_EMBEDDER_API_KEY", "")
    assert api_key() is None
