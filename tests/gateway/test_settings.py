"""What an operator may set, and what is said of what makes no sense."""

from __future__ import annotations

import pytest

from gateway.settings import Settings, SettingsError


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("GATEWAY_PORT", "http", "not a whole number"),
        ("GATEWAY_PORT", "70000", "between 0 and 65535"),
        ("GATEWAY_OUTPUT_MODE", "inline", "auto, url, data"),
        ("GATEWAY_PUBLIC_URL", "gateway.example", "http"),
        ("GATEWAY_ACCOUNT", "Me", "small letters"),
        ("GATEWAY_CREATE_DESTINATIONS", "perhaps", "yes or no"),
        ("GATEWAY_WEBHOOK_PORTS", "80,x", "port numbers"),
        ("GATEWAY_HOST", "0.0.0.0", "GATEWAY_TOKEN"),
        ("GATEWAY_WORKER_TOKEN", "short", "random characters"),
    ],
)
def test_settings_that_make_no_sense_are_named(name: str, value: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Settings.read({name: value})


def test_settings_come_from_the_environment() -> None:
    found = Settings.read({"GATEWAY_HOST": "::1", "GATEWAY_WEBHOOK_PORTS": "8080 9090", "GATEWAY_KEEP": "60"})
    assert found.public_url == "http://[::1]:8000"
    assert found.webhooks.ports == {8080, 9090}
    assert (found.keep, found.webhooks.loopback) == (60.0, True)
