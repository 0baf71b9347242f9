"""The pages of a small clinic, as sites have them; none knows of launch prefixes."""

from __future__ import annotations

from typing import Any

from asgiref.sync import sync_to_async
from django.contrib.auth.decorators import user_passes_test
from django.contrib.auth.models import Group
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template import engines
from django.utils.decorators import method_decorator
from django.views.generic import View

from django_smart.decorators import smart_required
from django_smart.mixins import SMARTRequiredMixin

_PAGE = """{% load i18n %}{% get_current_language as language %}
<!doctype html><html lang="{{ language }}">
<h1 data-patient="{{ patient }}">{{ name }}</h1>
<script nonce="{{ csp_nonce }}{{ CSP_NONCE }}"></script>
<a id="chart" href="{% url 'chart' %}">Chart</a>
<a id="results" href="{% url 'results' %}">Results</a>
<a id="moved" href="{% url 'moved' %}">Moved</a>
<a id="staff" href="{% url 'staff' %}">Staff</a>
{% for id in page %}<li data-result="{{ id }}"></li>{% endfor %}
{% if page.has_next %}
<a id="next" href="{{ request.path }}?page={{ page.next_page_number }}">More</a>
{% endif %}
{% for note in notes %}<p data-note="{{ note }}"></p>{% endfor %}
<form method="post" action="{% url 'note' %}">{% csrf_token %}
<input name="text"><button>Write</button></form></html>"""


def _show(request: HttpRequest, **context: Any) -> HttpResponse:
    """A page about the patient of the launch, who is read from the EHR."""
    smart: Any = request.smart  # type: ignore[attr-defined]
    patient = smart.fhir.read("Patient", smart.patient_id)
    context |= {"patient": patient["id"], "name": patient["name"][0]["family"]}
    return HttpResponse(engines["django"].from_string(_PAGE).render(context, request))


def _list_results(request: HttpRequest) -> HttpResponse:
    smart: Any = request.smart  # type: ignore[attr-defined]
    found = smart.fhir.search("Observation", patient=smart.patient_id, limit=5)
    subjects = [each["subject"]["reference"].split("/")[1] for each in found]
    page = Paginator(subjects, 2).get_page(request.GET.get("page"))
    return _show(request, page=page)


def _write(request: HttpRequest) -> HttpResponse:
    smart: Any = request.smart  # type: ignore[attr-defined]
    Group.objects.create(name=f"{smart.patient_id}: {request.POST['text']}")
    return redirect("chart")


@smart_required
def chart(request: HttpRequest) -> HttpResponse:
    """The patient, and what was noted."""
    smart: Any = request.smart  # type: ignore[attr-defined]
    notes = Group.objects.filter(name__startswith=f"{smart.patient_id}: ")
    return _show(request, notes=notes)


class Results(SMARTRequiredMixin):
    """What was measured, in pages."""

    smart_scopes = "patient/Observation.rs"

    def get(self, request: HttpRequest) -> HttpResponse:
        """One page of it."""
        return _list_results(request)


@smart_required
def note(request: HttpRequest) -> HttpResponse:
    """Keeps what a form says, and then asks the EHR, which may fail."""
    response = _write(request)
    _show(request)
    return response


def moved(request: HttpRequest) -> HttpResponse:
    """Another page by now."""
    return redirect("chart")


@user_passes_test(lambda user: user.is_staff)
def staff(request: HttpRequest) -> HttpResponse:
    """For the staff alone."""
    return HttpResponse("staff")


def login(request: HttpRequest) -> HttpResponse:
    """Where the staff sign in."""
    return HttpResponse("sign in")


# The same, asynchronous.


@smart_required
async def achart(request: HttpRequest) -> HttpResponse:
    """The patient, and what was noted."""
    smart = await request.asmart()  # type: ignore[attr-defined]
    patient = await smart.afhir.read("Patient", smart.patient_id)
    groups = Group.objects.filter(name__startswith=f"{patient['id']}: ")
    context = {
        "patient": patient["id"],
        "name": patient["name"][0]["family"],
        "notes": [each async for each in groups],
    }
    template = engines["django"].from_string(_PAGE)
    return HttpResponse(await sync_to_async(template.render)(context, request))


class AResults(SMARTRequiredMixin):
    """What was measured, in pages."""

    async def get(self, request: HttpRequest) -> HttpResponse:
        """One page of it."""
        await request.asmart()  # type: ignore[attr-defined]
        return await sync_to_async(_list_results)(request)


@method_decorator(smart_required, name="dispatch")
class ANote(View):
    """Keeps what a form says."""

    async def post(self, request: HttpRequest) -> HttpResponse:
        """Write it."""
        smart = await request.asmart()  # type: ignore[attr-defined]
        await Group.objects.acreate(name=f"{smart.patient_id}: {request.POST['text']}")
        return redirect("chart")


async def amoved(request: HttpRequest) -> HttpResponse:
    """Another page by now."""
    return redirect("chart")


async def _is_staff(user: Any) -> bool:
    return bool(user.is_staff)


@user_passes_test(_is_staff)  # type: ignore[arg-type]  # awaited since Django 5.1
async def astaff(request: HttpRequest) -> HttpResponse:
    """For the staff alone."""
    return HttpResponse("staff")
