"""A site whose views fail, with secrets and patients at hand."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import include, path
from django.views.decorators.debug import sensitive_variables

from django_smart.exceptions import SMARTError
from django_smart.fields import digest
from django_smart.views import CallbackView

NAME = "Quillfeather"
# Not written where it is used: reports quote the source.
SECRET = "s3cret"


def fail_in_launch(request: HttpRequest) -> HttpResponse:
    """Reads the patient, takes it apart, and fails."""
    smart: Any = request.smart  # type: ignore[attr-defined]
    patient = smart.fhir.read("Patient", smart.patient_id)
    name = patient["name"][0]["family"]
    first = _take_apart(patient)
    return HttpResponse(f"{name}, {first}: {1 // 0}")


def _take_apart(patient: dict[str, Any]) -> str:
    given: str = patient["name"][0]["given"][0]
    return given


def fail_in_fhir(request: HttpRequest) -> HttpResponse:
    """Asks for what the EHR does not have, and makes an error of its own of that."""
    smart: Any = request.smart  # type: ignore[attr-defined]
    try:
        return HttpResponse(smart.fhir.read("Observation", "no-such-one")["id"])
    except SMARTError as exc:
        raise LookupError("no such observation") from exc


def fail(request: HttpRequest) -> HttpResponse:
    """Fails outside any launch."""
    access_token = SECRET
    resource = {"resourceType": "Patient", "name": [{"family": NAME}]}
    url = f"https://ehr.example.org/?code={SECRET}"
    harmless = {"tab": "labs"}
    parameters = request.GET
    raise ValueError(
        f"at {url} {len(access_token)} {len(resource)} {len(harmless)} "
        f"{len(parameters)}"
    )


def fail_at_searches(get_response: Any) -> Any:
    """A middleware that fails for some requests."""

    def fail_or_go_on(request: HttpRequest) -> Any:
        if entered := request.GET.get("search"):
            raise LookupError(len(entered))
        return get_response(request)

    return fail_or_go_on


def fail_with_cause(request: HttpRequest) -> HttpResponse:
    """Fails because of something that quotes a URL."""
    try:
        raise OSError(f"https://ehr.example.org/token?code={SECRET}")
    except OSError as exc:
        error = ValueError("failed")
        error.add_note(f"state={SECRET}")
        raise error from exc


def fail_offline(request: HttpRequest) -> HttpResponse:
    """Fails in the package, for a request that has no launch."""
    # The name of its variable there tells nothing.
    return HttpResponse(digest(SECRET, 5))  # type: ignore[arg-type]  # fails


@sensitive_variables("remark")
def fail_with_remark(request: HttpRequest) -> HttpResponse:
    """Fails with something at hand that the site itself calls sensitive."""
    remark = SECRET
    return HttpResponse(len(remark) // 0)


class FailingCallback(CallbackView):
    """A callback at an address of the site's own, with a hook that fails."""

    def get_launch_url(self, launch: Any) -> str:
        """As a site's mistake would."""
        url: str = launch.no_such_attribute
        return url


urlpatterns = [
    path("admin/", admin.site.urls),
    path("fail/", fail),
    path("fail/cause/", fail_with_cause),
    path("fail/launch/", fail_in_launch),
    path("fail/fhir/", fail_in_fhir),
    path("fail/offline/", fail_offline),
    path("fail/remark/", fail_with_remark),
    path("failing-callback/", FailingCallback.as_view()),
    path("smart/", include("django_smart.urls")),
]
