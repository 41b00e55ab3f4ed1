"""What `compass serve` does before it starts Ray, and while it waits for the service."""

from __future__ import annotations

import urllib.request

import pytest
import requests.utils

from compass.cli.service import NOWHERE, await_ready, keep_to_ourselves


def test_no_proxy_of_the_environment_is_left_but_one_that_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever letters; the machine itself is reached without it, and everything else stays as it was."""
    environment = {"http_proxy": "http://p", "HTTPS_PROXY": "http://p", "grpc_proxy": "http://p", "no_proxy": "*"}
    environment |= {"RAY_USAGE_STATS_ENABLED": "1", "HOME": "/home/me"}
    keep_to_ourselves(environment)
    assert environment.pop("HOME") == "/home/me"
    assert environment.pop("RAY_USAGE_STATS_ENABLED") == "0"
    for name in urllib.request.getproxies_environment():
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_proxy".upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert requests.utils.get_environ_proxies("http://169.254.169.254/latest")["http"] == NOWHERE
    assert requests.utils.get_environ_proxies("http://127.0.0.1:8265/api") == {}


def test_a_start_that_takes_long_says_so() -> None:
    """Every ten seconds, with the reason of the moment; then it returns."""
    now_s, lines = [0.0], list[str]()

    def sleep(seconds: float) -> None:
        now_s[0] += seconds

    def obstacle() -> str | None:
        return "docs opens" if now_s[0] < 25 else None

    await_ready(obstacle, lines.append, poll_s=1.0, say_s=9.5, sleep=sleep, clock=lambda: now_s[0])
    assert lines == [f"opening the collections, {at} s so far: docs opens" for at in (10, 20)]
