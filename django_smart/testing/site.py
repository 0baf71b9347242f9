"""
This site, registered at a simulated EHR: the rows, and the data that tests add.

Everything here runs in the test's own process and transaction; nothing is sent to a
network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from django.contrib.auth.base_user import AbstractBaseUser
from django.urls import reverse

from django_smart import transport
from django_smart.models import ClientRegistration, FHIRServer, Identity
from django_smart.servers.registering import choose_callback
from django_smart.testing.simulator.ehr import EHRSimulator

__all__ = [
    "BASE_URL",
    "SITE_URL",
    "add_resource",
    "create_registration",
    "link_user",
    "mounted_ehr",
]

BASE_URL = "https://ehr.example.org/fhir"
"""The FHIR base URL of the simulated EHR."""

SITE_URL = "https://testserver"
"""Where the test client reaches this site."""

_CLIENT_ID = "app-under-test"
_SCOPE = "openid fhirUser patient/*.cruds user/*.cruds"


@contextmanager
def mounted_ehr(base_url: str = BASE_URL) -> Iterator[EHRSimulator]:
    """
    A simulated EHR that this site reaches at *base_url* inside the ``with`` block.

    No socket is opened.  Set ``faults`` of what is yielded to make it misbehave.
    """
    ehr = EHRSimulator(base_url=base_url)
    parts = urlsplit(base_url)
    with transport.mounted(f"{parts.scheme}://{parts.netloc}", ehr.adapter()):
        yield ehr


def create_registration(ehr: EHRSimulator, **values: Any) -> ClientRegistration:
    """
    Register this site at *ehr*, on both sides.

    Args:
        ehr: the simulated EHR.
        values: fields of the registration that are to be other than usual.  Those that
            begin with ``server__`` are fields of its server.

    Returns:
        The saved registration.  It may ask for everything; give ``ehr_scope`` or
        ``standalone_scope`` to try with less.

    Raises:
        ValidationError: the values do not fit together.
    """
    server_values = {
        "slug": "test-ehr",
        "name": "Test EHR",
        "base_url": ehr.base_url,
    } | {
        name.removeprefix("server__"): values.pop(name)
        for name in list(values)
        if name.startswith("server__")
    }
    server = FHIRServer(**server_values)
    server.full_clean()
    server.save()
    registration = ClientRegistration(
        server=server,
        **{
            "client_id": _CLIENT_ID,
            "client_secret": "not a secret",
            "ehr_scope": f"launch online_access {_SCOPE}",
            "standalone_scope": f"launch/patient offline_access {_SCOPE}",
            **values,
        },
    )
    if not registration.redirect_uri:
        registration.redirect_uri = SITE_URL + choose_callback(registration)
    registration.full_clean()
    registration.save()
    ehr.register_client(
        registration.client_id,
        client_secret=registration.client_secret or None,
        auth_method=registration.token_endpoint_auth_method,
        redirect_uris=[registration.redirect_uri],
        launch_url=SITE_URL + reverse("django_smart:launch"),
        name="This site",
    )
    return registration


def link_user(ehr: EHRSimulator, user: AbstractBaseUser, reference: str = "") -> str:
    """
    Let *user* of this site be somebody at *ehr*, as if they had signed in before.

    Args:
        ehr: the simulated EHR.
        user: a saved user.
        reference: who they are there, such as ``Practitioner/<id>`` or
            ``Patient/<id>``; by default a clinician whom no other user is.

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
        resource: with ``resourceType`` and ``id``; one that is there is replaced.

    Returns:
        What was stored: a copy, with the version that a server gives it.
    """
    meta = {"versionId": "1", "lastUpdated": "2026-01-01T00:00:00.000Z"}
    stored = {**resource, "meta": meta | resource.get("meta", {})}
    ehr.data.setdefault(stored["resourceType"], {})[stored["id"]] = stored
    return stored
