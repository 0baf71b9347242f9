"""
Register this site at a simulated EHR, and add test data.

Everything runs in the test's process and transaction; nothing is sent over a network.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from django.contrib.auth.base_user import AbstractBaseUser

from django_smart import transport
from django_smart.models import (
    ClientRegistration,
    FHIRServer,
    Identity,
    SigningKey,
)
from django_smart.servers.registering import build_client_urls, choose_callback
from django_smart.servers.signing_keys import ensure_active_key
from django_smart.testing.simulator.ehr import EHRSimulator

__all__ = [
    "BASE_URL",
    "SITE_URL",
    "add_bundle",
    "add_resource",
    "create_registration",
    "link_user",
    "mounted_ehr",
]

BASE_URL = "https://ehr.example.org/fhir"
"""The FHIR base URL of the simulated EHR."""

SITE_URL = "https://testserver"
"""The URL at which the test client reaches this site."""

_CLIENT_ID = "app-under-test"
_SERVICE_ID = "service-under-test"
# Only in the patient's record: the EHR refuses a view's other requests.
_SCOPE = "openid fhirUser patient/*.cruds"
_PRIVATE_KEY = ClientRegistration.AuthMethod.PRIVATE_KEY_JWT


@contextmanager
def mounted_ehr(base_url: str = BASE_URL) -> Iterator[EHRSimulator]:
    """
    Provide a simulated EHR at *base_url* inside the ``with`` block.

    No socket is opened. Set ``faults`` of the yielded EHR to make it misbehave.
    """
    ehr = EHRSimulator(base_url=base_url)
    parts = urlsplit(base_url)
    with transport.mounted(f"{parts.scheme}://{parts.netloc}", ehr.adapter()):
        yield ehr


def create_registration(
    ehr: EHRSimulator, *, site_url: str = SITE_URL, **values: Any
) -> ClientRegistration:
    """
    Register this site at *ehr*, on both sides.

    Args:
        ehr: the simulated EHR. If it is already registered, it gets another client.
        site_url: scheme and host of this site.
        values: fields of the registration that differ from the defaults. Names that
            begin with ``server__`` are fields of its server. With a ``system_scope``,
            it is a backend service, and used for launches only if it also has a scope
            for them.

    Returns:
        The saved registration. It may request everything in the patient's record; pass
        ``ehr_scope`` or ``standalone_scope`` to test with less, or with ``user/``.

    Raises:
        ValidationError: the values contradict each other.
    """
    server_values = {
        name.removeprefix("server__"): values.pop(name)
        for name in list(values)
        if name.startswith("server__")
    }
    is_service = "system_scope" in values
    if is_service:
        usual = {"client_id": _SERVICE_ID, "token_endpoint_auth_method": _PRIVATE_KEY}
    else:
        usual = {
            "client_id": _CLIENT_ID,
            "ehr_scope": f"launch online_access {_SCOPE}",
            "standalone_scope": f"launch/patient offline_access {_SCOPE}",
        }
    registration = ClientRegistration(
        server=_get_server(ehr, server_values), **{**usual, **values}
    )
    method = registration.token_endpoint_auth_method
    has_key = method == _PRIVATE_KEY
    if not has_key and method != "none" and not registration.client_secret:
        registration.client_secret = "not a secret"  # noqa: S105
    for_launches = registration.ehr_scope or registration.standalone_scope
    if for_launches and not registration.redirect_uri:
        registration.redirect_uri = site_url + choose_callback(registration)
    registration.full_clean()
    registration.save()
    if has_key:
        ensure_active_key(registration.signing_algorithm)
    ehr.register_client(
        registration.client_id,
        client_secret=registration.client_secret or None,
        auth_method=method,
        jwks=SigningKey.objects.as_jwks() if has_key else None,
        redirect_uris=[registration.redirect_uri] if for_launches else [],
        launch_url=build_client_urls(registration, site_url=site_url).launch_url,
        name="This site",
    )
    return registration


def _get_server(ehr: EHRSimulator, values: dict[str, Any]) -> FHIRServer:
    known = FHIRServer.objects.with_base_url(ehr.base_url).first()
    if known is not None and not values:
        return known
    number = FHIRServer.objects.count() + 1
    server = FHIRServer(
        **{
            "slug": "test-ehr" if number == 1 else f"test-ehr-{number}",
            "name": "Test EHR" if number == 1 else f"Test EHR {number}",
            "base_url": ehr.base_url,
            **values,
        }
    )
    server.full_clean()
    server.save()
    return server


def link_user(ehr: EHRSimulator, user: AbstractBaseUser, reference: str = "") -> str:
    """
    Link *user* of this site to an account at *ehr*, as if they had signed in before.

    Args:
        ehr: the simulated EHR.
        user: a saved user.
        reference: the account's resource, such as ``Practitioner/<id>`` or
            ``Patient/<id>``; by default, a clinician who is not linked to another user.

    Returns:
        The reference.
    """
    server = FHIRServer.objects.with_base_url(ehr.base_url).first()
    if server is None:
        raise ValueError("the EHR is not registered here: call create_registration()")
    references = [reference] if reference else list(ehr.users)
    for each in references:
        subject = ehr.users[each].subject
        identity = Identity.objects.with_subject(
            ehr.issuer, subject, server=server
        ).first()
        if identity is None:
            Identity.objects.create(
                server=server,
                issuer=ehr.issuer,
                subject=subject,
                fhir_user=each,
                user_id=user.pk,
            )
            return each
        if identity.user_id == user.pk:
            return each
    raise ValueError("everybody at the EHR is another user of this site already")


def add_resource(ehr: EHRSimulator, resource: Mapping[str, Any]) -> dict[str, Any]:
    """
    Store a FHIR resource at *ehr*.

    Args:
        ehr: the simulated EHR.
        resource: with ``resourceType`` and ``id``; an existing one is replaced.

    Returns:
        The stored copy, with the version that the server assigned.
    """
    meta = {"versionId": "1", "lastUpdated": "2026-01-01T00:00:00.000Z"}
    stored = {**resource, "meta": meta | resource.get("meta", {})}
    ehr.data.setdefault(stored["resourceType"], {})[stored["id"]] = stored
    return stored


def add_bundle(ehr: EHRSimulator, bundle: Mapping[str, Any]) -> list[dict[str, Any]]:
    """
    Store all resources of a Bundle, for example from a test data generator, at *ehr*.

    Args:
        ehr: the simulated EHR.
        bundle: a Bundle as a plain dict. Entries may refer to each other by their
            ``fullUrl``, a ``urn:uuid:``, which also becomes the id of a resource
            without one.

    Returns:
        The stored resources, in the order of the entries.
    """
    resources = []
    urls = {}
    for entry in bundle["entry"]:
        resource, url = entry["resource"], entry.get("fullUrl", "")
        resource = {**resource, "id": resource.get("id") or url.rpartition(":")[2]}
        resources.append(resource)
        if url.startswith("urn:"):
            urls[url] = f"{resource['resourceType']}/{resource['id']}"
    text = json.dumps(resources)
    for url, name in urls.items():
        text = text.replace(f'"reference": "{url}"', f'"reference": "{name}"')
    return [add_resource(ehr, resource) for resource in json.loads(text)]
