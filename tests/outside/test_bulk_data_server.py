"""
Exports from smart-on-fhir/bulk-data-server, where it runs.

``BULK_DATA_SERVER`` is its address, such as ``http://localhost:9443``.  Run it with
``NODE_ENV=test`` (and ``PORT=9443``): otherwise it answers 60 requests a minute for the
state of exports, and refuses what is more with ``Retry-After`` as seconds since 1970,
for which the client would wait an hour.  Where ``database.r4.db`` is missing,
``npx ts-node --transpile-only data/import.ts -d data/fhir`` makes it.
"""

from __future__ import annotations

import json
import os
from base64 import urlsafe_b64encode
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import pytest
import requests

from django_smart.clients import backend_client_for
from django_smart.exceptions import BearerBoundaryError
from django_smart.fhir import FHIRClient
from django_smart.models import SigningKey
from django_smart.servers.signing_keys import create_signing_key
from tests.factories import make_registration

_ADDRESS = os.environ.get("BULK_DATA_SERVER", "")

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.process,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not _ADDRESS, reason="BULK_DATA_SERVER is not set"),
]


@pytest.fixture
def connect(settings: Any) -> Callable[..., FHIRClient]:
    """Make a client for the server that *simulated* says, in its own words."""
    settings.SMART_INSECURE_HTTP_HOSTS = {"localhost", "127.0.0.1"}
    create_signing_key("ES384")
    form = {"jwks": json.dumps(SigningKey.objects.as_jwks()), "dur": 15}
    client_id = requests.post(f"{_ADDRESS}/auth/register", form, timeout=60).text

    def connect(boundary: str = "origin", **simulated: Any) -> FHIRClient:
        path = urlsafe_b64encode(json.dumps(simulated).encode()).decode().rstrip("=")
        registration = make_registration(
            client_id=client_id,
            token_endpoint_auth_method="private_key_jwt",
            signing_algorithm="ES384",
            client_secret="",
            ehr_scope="",
            standalone_scope="",
            redirect_uri="",
            system_scope="system/*.rs",
            server__base_url=f"{_ADDRESS}/{path}/fhir",
            server__bearer_boundary=boundary,
        )
        return backend_client_for(registration)

    return connect


def count_all() -> int:
    url = f"{_ADDRESS}/fhir/$get-resource-counts"
    counts = requests.get(url, timeout=60).json()["parameter"]
    return sum(each["valueInteger"] for each in counts)


def test_all_groups_patients_and_systems_are_exported(connect):
    fhir = connect()
    assert sum(1 for _ in fhir.export()) == count_all()
    patients = {found["id"] for found in fhir.export("Patient", types=["Patient"])}
    group = {
        found["id"] for found in fhir.export("Group/BMCHealthNet", types=["Patient"])
    }
    assert group
    assert group < patients
    one = group.pop()
    (found,) = fhir.export("Patient", types=["Patient"], patient=f"Patient/{one}")
    assert found["id"] == one


def test_files_are_gone_on_with(connect):
    fhir = connect(page=50, opp=3)
    export = fhir.export()
    seen = [found["id"] for found in islice(export, 170)]
    rest = [found["id"] for found in fhir.resume_export(export.state)]
    assert len({*seen, *rest}) == count_all()


def test_deletions_are_listed(connect):
    fhir = connect(page=100, **{"del": 20})
    options: dict[str, Any] = {"types": ["Patient", "Observation"]}
    whole = sum(1 for _ in fhir.export(**options))
    export = fhir.export(since=datetime(2000, 1, 1, tzinfo=UTC), **options)
    deleted = list(export.deleted())
    assert deleted
    assert sum(1 for _ in export) < whole
    assert all(text.startswith(("Patient/", "Observation/")) for text in deleted)


def test_failures_say_why(connect):
    fhir = connect(page=100, err="some_file_generation_failed")
    assert fhir.export(types=["Observation", "Patient"]).problems()


def test_export_whose_status_is_outside_is_not_polled(connect):
    export = connect("base", page=100).export()
    with pytest.raises(BearerBoundaryError):
        export.poll()
