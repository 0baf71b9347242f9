"""A test client that launches this site from an EHR."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.contrib.auth.base_user import AbstractBaseUser
from django.http import HttpResponseBase
from django.test import AsyncClient, Client
from django.urls import Resolver404, get_script_prefix, resolve, reverse

from django_smart.fields import digest
from django_smart.launches.prefix import build_launch_path, split_launch_key
from django_smart.models import ClientRegistration, Launch
from django_smart.servers.registering import build_client_urls
from django_smart.testing.simulator.ehr import EHRSimulator
from django_smart.testing.site import SITE_URL, link_user

__all__ = ["AsyncSMARTClient", "SMARTClient"]

# Never under a launch prefix.
_APPS_OUTSIDE = frozenset({"admin", "django_smart"})
_HOST = urlsplit(SITE_URL).netloc
_FROM_EHR = {"Sec-Fetch-Site": "cross-site"}


class _InLaunch:
    """Sends https requests to pages of the open launch."""

    smart_launch: Launch | None = None
    """The newest launch, whose pages are requested; ``None`` before the first."""

    def generic(self, method: str, path: str, *args: Any, **kwargs: Any) -> Any:
        kwargs["secure"] = True
        path = _take_off_root(self.build_path(_take_off_root(path)))
        # A mixin for both test clients of Django.
        return super().generic(method, path, *args, **kwargs)  # type: ignore[misc]

    def build_path(self, path: str) -> str:
        """Return *path* of this site, under the prefix of the open launch, if any."""
        path_info = urlsplit(path).path
        if (
            self.smart_launch is None
            or split_launch_key(path_info)[0] is not None
            or _is_outside(path_info)
        ):
            return path
        return build_launch_path(self.smart_launch.key, path)


class SMARTClient(_InLaunch, Client):  # type: ignore[misc]  # fewer names than there
    """
    Django's test client as the browser of a user who opens this site from an EHR.

    After :meth:`launch` or :meth:`connect`, each path is requested under the prefix of
    that launch; set ``smart_launch`` to return to an earlier one, or to ``None`` to
    omit the prefix.

    Args:
        registration: created by ``create_registration``.
        ehr: the simulated EHR at which it is registered.
    """

    def __init__(
        self, registration: ClientRegistration, ehr: EHRSimulator, **defaults: Any
    ) -> None:
        # By default, its user follows links on this site.
        own: dict[str, Any] = {"HTTP_HOST": _HOST, "HTTP_SEC_FETCH_SITE": "same-origin"}
        super().__init__(**{**own, **defaults})
        self.registration = registration
        self.ehr = ehr

    def request(self, **request: Any) -> Any:
        """Set ``resolver_match``, which Django cannot find under the prefix."""
        response: Any = super().request(**request)
        response.resolver_match = response.wsgi_request.resolver_match
        return response

    def launch(
        self,
        patient: str | None = "",
        *,
        scopes: str = "",
        user: AbstractBaseUser | None = None,
        fhir_user: str = "",
        **context: Any,
    ) -> Launch:
        """
        Open this site from a patient's chart: an EHR launch, up to the landing page.

        Args:
            patient: id of the patient; by default, the first of
                ``ehr.data["Patient"]``. ``None`` launches outside of a chart.
            scopes: resource scopes that the EHR grants; by default, all requested ones.
            user: the user whom it signs in; by default, a new user.
            fhir_user: the EHR account, such as ``Practitioner/<id>``; by default, a
                clinician.
            context: further arguments of ``EHRSimulator.create_launch``, such as
                ``encounter`` or ``intent``.

        Returns:
            The launch, which is also kept as ``smart_launch``.

        Raises:
            AssertionError: this site refused; the message quotes its page.
        """
        if patient == "":
            patient = next(iter(self.ehr.data["Patient"]))
        if user is not None:
            fhir_user = link_user(self.ehr, user, fhir_user)
        launch_id = self.ehr.create_launch(
            self.registration.client_id,
            patient=patient,
            user=fhir_user or None,
            **context,
        )
        self.smart_launch = None
        urls = build_client_urls(self.registration, site_url=SITE_URL)
        response = self.get(
            urlsplit(urls.launch_url).path,
            {"iss": self.ehr.base_url, "launch": launch_id},
            headers=_FROM_EHR,
        )
        granted = f"launch openid fhirUser {scopes}" if scopes else None
        return self._finish(response, scope=granted)

    def connect(
        self,
        patient: str = "",
        *,
        scopes: str = "",
        user: AbstractBaseUser | None = None,
        fhir_user: str = "",
    ) -> Launch:
        """
        Connect records: a standalone launch with ``offline_access``.

        A user who is already signed in stays signed in and is connected.

        Args:
            patient, scopes, user: see :meth:`launch`.
            fhir_user: see :meth:`launch`; for a patient who signs in to the EHR as
                themselves, ``"Patient/<id>"``.

        Returns:
            The launch, which is also kept as ``smart_launch``.

        Raises:
            AssertionError: this site refused; the message quotes its page.
        """
        if user is not None:
            fhir_user = link_user(self.ehr, user, fhir_user)
        if not patient and fhir_user.startswith("Patient/"):
            patient = fhir_user.removeprefix("Patient/")
        self.smart_launch = None
        data = self.registration.login_parameters
        # Without the cookie, ``self.session`` would create a session.
        if settings.SESSION_COOKIE_NAME in self.cookies:
            data["user"] = self.session.get(SESSION_KEY, "")
        response = self.post(reverse("django_smart:login"), data)
        granted = (
            f"launch/patient openid fhirUser offline_access {scopes}"
            if scopes
            else None
        )
        return self._finish(
            response, scope=granted, user=fhir_user or None, patient=patient or None
        )

    def as_async(self) -> AsyncSMARTClient:
        """Return a client for async views, with the same cookies and launch."""
        headers: dict[str, Any] = {"sec-fetch-site": "same-origin"}
        client = AsyncSMARTClient(**headers)
        client.cookies = self.cookies
        client.smart_launch = self.smart_launch
        return client

    def _finish(self, response: HttpResponseBase, **choices: Any) -> Launch:
        authorization_url = _get_redirect(response)
        (state,) = parse_qs(urlsplit(authorization_url).query)["state"]
        callback = urlsplit(self.ehr.authorize(authorization_url, **choices))
        query = parse_qsl(callback.query, keep_blank_values=True)
        _get_redirect(self.get(callback.path, query, headers=_FROM_EHR))
        launch = Launch.objects.with_related().get(state_digest=digest(state))
        if launch.status == Launch.Status.HELD:
            raise AssertionError(
                "the launch waits: sign out whoever is signed in, or, for one of the "
                "staff, name the server in SMART_STAFF_SIGN_IN_SERVERS "
                f"({launch.get_question_display()})"
            )
        self.smart_launch = launch
        return launch


class AsyncSMARTClient(_InLaunch, AsyncClient):  # type: ignore[misc]  # as above
    """The client that :meth:`SMARTClient.as_async` returns."""

    async def request(self, **request: Any) -> Any:
        """See :meth:`SMARTClient.request`."""
        response: Any = await super().request(**request)
        response.resolver_match = response.asgi_request.resolver_match
        return response


def _get_redirect(response: HttpResponseBase) -> str:
    if response.status_code != 302:
        page = getattr(response, "content", b"").decode(errors="replace")
        raise AssertionError(
            f"the launch was refused with status {response.status_code}:\n{page}"
        )
    return str(response["Location"])


def _take_off_root(path: str) -> str:
    """*path* as a server passes it on that mounts this site below a path."""
    root = get_script_prefix()
    return "/" + path.removeprefix(root) if path.startswith(root) else path


def _is_outside(path_info: str) -> bool:
    try:
        return not _APPS_OUTSIDE.isdisjoint(resolve(path_info).app_names)
    except Resolver404:
        return False
