from __future__ import annotations

import pytest

from tests.services import SERVICES, Service, require


def _refuse() -> None:
    raise RuntimeError("nobody here")


@pytest.fixture
def missing() -> Service:
    return Service(name="Example service", port=None, ping=_refuse)


def test_missing_service_skips_the_test_by_name(missing, monkeypatch):
    monkeypatch.delenv("REQUIRE_SERVICES", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"needs Example service: .*nobody"):
        require(missing)


def test_missing_service_fails_the_test_when_services_are_required(
    missing, monkeypatch
):
    monkeypatch.setenv("REQUIRE_SERVICES", "1")
    with pytest.raises(pytest.fail.Exception, match=r"needs Example service: .*nobody"):
        require(missing)


def test_present_service_lets_the_test_run():
    require(Service(name="Example service", port=None, ping=lambda: None))


def test_closed_port_is_a_missing_service():
    service = Service(name="Example service", port=1, ping=lambda: None)
    assert service.fault is not None
    assert str(service) == "Example service at 127.0.0.1:1"


def test_every_service_has_a_marker_of_its_name(pytestconfig):
    markers = {line.partition(":")[0] for line in pytestconfig.getini("markers")}
    assert set(SERVICES) <= markers
