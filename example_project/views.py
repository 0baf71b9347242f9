"""The pages of the example: home, the patient page and ``/status.json``."""

from __future__ import annotations

from django.http import HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from django_smart.clients import connections_of
from django_smart.decorators import smart_required
from example_project.chart import SMARTRequest, load_facts, load_results

__all__ = ["home", "patient", "status"]


@require_safe
@never_cache
def home(request: SMARTRequest) -> HttpResponse:
    """Say what this site does, and lead to the chart or to one's connected records."""
    facts = load_facts(request.smart)[0] if request.smart else None
    connections = connections_of(request.user)
    records = [each for each in connections if each.can_open]
    return render(request, "example/home.html", {"facts": facts, "records": records})


@require_safe
@never_cache
@smart_required
def patient(request: SMARTRequest) -> HttpResponse:
    """Show the launch's patient and their HbA1c, and say what could not be had."""
    facts, facts_problem = load_facts(request.smart)
    series, series_problem = load_results(request.smart)
    return render(
        request,
        "example/patient.html",
        {
            "facts": facts,
            "facts_problem": facts_problem,
            "series": series,
            "series_problem": series_problem,
            # Only a clear "false" says that the EHR shows the patient itself.
            "show_banner": request.smart.need_patient_banner is not False,
        },
    )


@require_safe
@never_cache
def status(request: SMARTRequest) -> JsonResponse:
    """Return what this browser's launch is about, as JSON, for scripts and checks."""
    smart = request.smart
    user = request.user
    answer: dict[str, object] = {
        "launched": False,
        "launch": None,
        "user": user.get_username() if user.is_authenticated else None,
        "fhir_user": None,
        "fhir_server": None,
        "patient": None,
        "encounter": None,
        "scope": None,
        "need_patient_banner": None,
        "intent": None,
        "tenant": None,
    }
    if smart.launch is not None and smart.server is not None:
        answer |= {
            "launched": True,
            "launch": smart.launch.key,
            "fhir_user": smart.fhir_user,
            "fhir_server": smart.server.base_url,
            "patient": smart.patient_id,
            "encounter": smart.encounter_id,
            "scope": str(smart.scopes),
            "need_patient_banner": smart.need_patient_banner,
            "intent": smart.intent,
            "tenant": smart.tenant,
        }
    return JsonResponse(answer)
