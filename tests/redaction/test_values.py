"""What every class of the package shows of itself."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
from django.apps import apps
from django.db import models
from django.test import RequestFactory

import django_smart
from django_smart.clients import Connection
from django_smart.fhir.adapters import FHIRSession
from django_smart.fhir.asynchronous import AsyncFHIRClient, AsyncSearchStream
from django_smart.fhir.batch import Batch
from django_smart.fhir.bulk import BulkExport
from django_smart.fhir.client import FHIRClient
from django_smart.fhir.connection import FHIRConnection
from django_smart.fhir.paging import (
    History,
    SearchPage,
    SearchResult,
    SearchStream,
)
from django_smart.fhir.searching import PatientRecord
from django_smart.fields import _Plaintext, _Secret
from django_smart.launches.browser import Browser
from django_smart.launches.context import SMARTContext
from django_smart.models import Launch
from django_smart.models.quirks_field import QuirksField
from django_smart.protocol.messages import HiddenBytes, HiddenText
from django_smart.protocol.quirks import Quirks
from tests.fhir.servers import Carrier, Tokens

CANARY = "c4nary"

# What anybody may see: names, kinds and numbers.  A new field of a value is hidden
# (``repr=False``), or was thought about and is written here.
_VISIBLE = """
Compartment.parameter Compartment.subjects
AllowList.batch AllowList.record AllowList.methods AllowList.operations
AllowList.parameters AllowList.resource_types Record.is_for_script Record.types
RecordGuard.fetch RecordGuard.record RecordGuard.rules
RecordRules.always RecordRules.may_write_unread
PrivateKeyJWT.with_client_id
audience
AppState.code AppState.id ExportedFile.count Quantity.unit active algorithm
associated_endpoints
authorization_endpoint authorization_response_iss_parameter_supported base_url
canonical_url capabilities changes client_id client_secret_expires_at
code_challenge_methods_supported connect context_changed Deviation.code
deviations duration end_session_endpoint
endpoint error error_code etag evidence expires_at form_encode
generated grant_types_supported host
id_token_signing_alg_values_supported insecure_hosts interaction
introspection_endpoint_auth_methods_supported
introspection_endpoint issuer jwks_uri jwks_url kid kind label
launch_url letters level login_url management_endpoint method
max_size missing name now path port preset query read redirect_uri
refresh_expires_at registration_endpoint removed request_id resource_type
revocation_endpoint role rotated scheme scope
scopes scopes_supported seconds secret_expires_at server_values
site_url slug status_code system text token_endpoint
token_endpoint_auth_method token_endpoint_auth_methods_supported
token_endpoint_auth_signing_alg_values_supported total type url
user_access_brand_bundle user_access_brand_identifier uses_post
"""
VISIBLE = frozenset(_VISIBLE.split())
# Rows and messages, whose own text is looked at here, and what is made of published
# documents.
ROWS = frozenset(
    {"launch", "request", "head", "user", "owner", "claims", "registration", "browser"}
)
PUBLISHED = (
    "django_smart.checks.",
    "django_smart.error_pages.words",
    "django_smart.launches.purge",
    "django_smart.contrib.brands",
    "django_smart.contrib.doctor",
    "django_smart.diagnoses",
    "django_smart.contrib.monitoring",
    "django_smart.views.picker",
    "django_smart.management.commands.smart_reencrypt",
    "django_smart.grants.turn",
    "django_smart.servers.requirements",
    "django_smart.protocol.quirks",
    "django_smart.protocol.style",
)
# They show what they are made of by a method of their own, looked at below.
OWN_REPR = {
    Batch,
    AsyncFHIRClient,
    AsyncSearchStream,
    Browser,
    BulkExport,
    Connection,
    FHIRClient,
    FHIRConnection,
    FHIRSession,
    History,
    PatientRecord,
    SMARTContext,
    SearchPage,
    SearchResult,
    SearchStream,
    HiddenBytes,
    HiddenText,
    _Plaintext,
    _Secret,
}


def find_classes() -> Iterator[type]:
    """Every class of the package but the simulator's, whose secrets are made up."""
    for module in pkgutil.walk_packages(django_smart.__path__, "django_smart."):
        if ".migrations." in module.name or ".testing" in module.name:
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(value) and value.__module__ == module.name:
                yield value


CLASSES = sorted(set(find_classes()), key=lambda cls: (cls.__module__, cls.__name__))
VALUES = [cls for cls in CLASSES if dataclasses.is_dataclass(cls)]
MODELS = [
    model
    for app in ("django_smart", "django_smart_brands", "django_smart_records")
    for model in apps.get_app_config(app).get_models()
]


def test_the_classes_are_found():
    assert len(VALUES) > 40
    assert len(MODELS) > 8


@pytest.mark.parametrize("cls", VALUES, ids=lambda cls: cls.__name__)
def test_value_shows_nothing_but_what_anybody_may_see(cls):
    if cls.__module__.startswith(PUBLISHED):
        return
    value = object.__new__(cls)
    for field in dataclasses.fields(cls):
        object.__setattr__(value, field.name, f"{CANARY}-{field.name}")
    shown = {
        f"{cls.__name__}.{field.name}"
        if f"{cls.__name__}.{field.name}" in VISIBLE
        else field.name
        for field in dataclasses.fields(cls)
        if f"{CANARY}-{field.name}'" in repr(value)
    }
    assert shown <= VISIBLE | ROWS


def test_only_known_classes_describe_themselves():
    others = {
        cls
        for cls in CLASSES
        if cls not in VALUES
        and "__repr__" in vars(cls)
        and not issubclass(cls, BaseException | enum.Enum | tuple | float)
    }
    assert {cls for cls in others if "redaction" not in cls.__module__} <= OWN_REPR


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_row_shows_no_secret_and_no_patient(model):
    shown = {"slug", "name", "base_url", "issuer", "location", "address"}
    shown |= {"resource_type", "query"}
    row = model()
    for field in model._meta.concrete_fields:
        if isinstance(field, models.CharField | models.TextField) and not field.choices:
            setattr(row, field.attname, f"{CANARY}-{field.name}")
        elif isinstance(field, QuirksField):
            setattr(row, field.attname, Quirks(discovery_headers={"X": CANARY}))
        elif isinstance(field, models.JSONField):
            setattr(row, field.attname, {"patient": f"{CANARY}-{field.name}"})
    for name in ("registration", "server"):
        if name in {field.name for field in model._meta.get_fields()}:
            related: Any = model._meta.get_field(name).related_model
            setattr(row, name, related(**_related(related)))
    text = repr(row) + str(row)
    for name in shown:
        text = text.replace(f"{CANARY}-{name}", "")
    assert CANARY not in text


def _related(model: Any) -> dict[str, Any]:
    if model.__name__ != "ClientRegistration":
        return {}
    server = model._meta.get_field("server").related_model
    return {"client_secret": CANARY, "client_id": CANARY, "server": server(slug="s")}


def test_what_describes_itself_tells_no_value():
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    client = FHIRClient(
        base_url=f"https://ehr.example.org/{CANARY}",
        tokens=Tokens(lambda: CANARY, fail),
        transport=Carrier(fail),
        patient_id=CANARY,
    )
    request = RequestFactory().get(f"/{CANARY}/?code={CANARY}")
    request.COOKIES["smart_browser"] = CANARY * 8
    context = SMARTContext(request, key=CANARY)
    vars(context)["launch"] = Launch(context={"patient": CANARY}, key=CANARY)
    found = client.iterate("Patient", name=CANARY)
    result = SearchResult("Patient")
    result.append({"id": CANARY})
    history = History("history of Patient")
    history.append({"id": CANARY})
    bundle = {"entry": [{"resource": {"id": CANARY}}], "link": []}
    async_client = AsyncFHIRClient(client)
    export = BulkExport(client, {"status_url": f"https://ehr.example.org/{CANARY}"})
    values = [
        export,
        async_client,
        async_client.iterate("Patient", name=CANARY),
        client.patient(CANARY),
        client,
        client.session,
        context,
        Browser(request),
        HiddenBytes(CANARY.encode()),
        HiddenText(CANARY),
        _Plaintext(CANARY),
        _Secret(plaintext=CANARY, column="app.Model.field"),
        found,
        SearchPage(bundle, url=CANARY, resource_type="Patient"),
        result,
        history,
        client.patient(CANARY),
        client.batch(),
    ]
    for value in values:
        assert CANARY not in repr(value)
        if not isinstance(value, str):
            assert CANARY not in str(value)
