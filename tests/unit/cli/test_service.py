"""What `compass serve` makes of the environment before it starts Ray."""

from __future__ import annotations

import urllib.request

import pytest
import requests.utils

from compass.cli.service import NOWHERE, keep_to_ourselves


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
