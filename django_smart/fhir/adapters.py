"""Other people's FHIR clients, with this grant: ``fhirpy`` and ``fhirclient``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from django_smart.fhir.interactions import FHIR_JSON, refuse_part
from django_smart.fhir.json import EXACT, dump_json

if TYPE_CHECKING:
    from fhirclient.client import FHIRClient as SMARTClient
    from fhirpy import SyncFHIRClient

    from django_smart.fhir.connection import FHIRConnection

__all__ = ["build_fhirclient", "build_fhirpy"]


def build_fhirpy(client: FHIRConnection) -> SyncFHIRClient:
    """
    Return a ``fhirpy.SyncFHIRClient`` that uses this grant.

    Raises:
        ImportError: ``fhirpy`` is not installed.
    """
    from fhirpy import SyncFHIRClient
    from fhirpy.base.exceptions import (
        AuthorizationError,
        ForbiddenError,
        MultipleResourcesFound,
        OperationOutcome,
        ResourceNotFound,
    )
    from fhirpy.base.utils import AttrDict

    errors = {
        401: AuthorizationError,
        403: ForbiddenError,
        404: ResourceNotFound,
        410: ResourceNotFound,
        412: MultipleResourcesFound,
    }

    class Client(SyncFHIRClient):
        # Replaces upstream's, which sends by connections of its own.
        def _do_request(
            self,
            method: str,
            path: str,
            data: Any = None,
            params: Any = None,
            extra_headers: Any = None,
            *,
            returning_status: bool = False,
        ) -> Any:
            headers = {**self._build_request_headers(), **(extra_headers or {})}
            url = self._build_request_url(path, params)
            if method.lower() == "put":
                refuse_part(data)
            if data is not None:
                headers = {"Content-Type": FHIR_JSON, **headers}
                data = dump_json(data)
            answer = client.session.request(method, url, data=data, headers=headers)
            status = answer.status_code
            if status == 304:
                value = None
            elif 200 <= status < 300:
                text = answer.content.decode()
                value = (
                    json.loads(text, object_hook=AttrDict, **EXACT) if text else None
                )
            elif status in errors:
                raise errors[status](answer.content.decode())
            else:
                outcome: Any = OperationOutcome  # untyped
                raise outcome(**_read_outcome(answer.content.decode()))
            return (value, status) if returning_status else value

        # Replaces upstream's, which knows nothing of pages beside the base.
        def _build_request_url(self, path: str, params: Any) -> str:
            if "://" in path and client.is_within_boundary(path):
                return path
            return str(super()._build_request_url(path, params))

    return Client(client.base_url)


def _read_outcome(text: str) -> dict[str, Any]:
    """What fhirpy's ``OperationOutcome`` is made of: a resource, or any text."""
    try:
        resource = json.loads(text)
    except ValueError:
        return {"reason": text}
    is_outcome = (
        isinstance(resource, dict)
        and resource.get("resourceType") == "OperationOutcome"
    )
    return {"resource": resource} if is_outcome else {"reason": text}


def build_fhirclient(client: FHIRConnection) -> SMARTClient:
    """
    Return a ``fhirclient.client.FHIRClient`` that uses this grant.

    Raises:
        ImportError: ``fhirclient`` is not installed.
    """
    from fhirclient.auth import FHIRAuth
    from fhirclient.client import FHIRClient as SMARTClient

    smart = SMARTClient(
        settings={
            "app_id": "django_smart",
            "api_base": client.base_url,
            "patient_id": client.patient_id,
        }
    )
    smart.server.session = client.session
    # It has no authorization of its own: it is ready and asks no one.
    smart.server.auth = FHIRAuth()
    return smart
