"""The pages of the example, on launches from the simulator."""

from __future__ import annotations

import json
import re

import pytest

from django_smart.models import ClientRegistration
from tests.answers import answer
from tests.ehr import (
    PATIENT,
    get_callback,
    make_browser,
    start_ehr_launch,
    start_login,
)
from tests.example.conftest import SCOPE

pytestmark = pytest.mark.usefixtures("site")


def launch(client, ehr, *, scope=None, **context):
    """Launch the example from the EHR, and return the path to go on with."""
    url = ehr.authorize(start_ehr_launch(client, ehr, **context), scope=scope)
    return get_callback(client, url)["Location"]


def prefix_of(path):
    match = re.match(r"/~[^/]+", path)
    assert match
    return match.group()


def test_home_leads_to_connecting_records(client, db):
    response = client.get("/")
    assert response.status_code == 200
    assert b'href="/smart/login/"' in response.content
    assert "no-store" in response.headers["Cache-Control"]


def test_pages_carry_a_policy_without_inline_scripts(client, db):
    policy = client.get("/").headers["Content-Security-Policy"]
    assert "script-src 'self'" in policy
    assert "unsafe-inline" not in policy


def test_a_launch_arrives_at_the_patient_page(client, ehr):
    path = launch(client, ehr)
    assert path.endswith("/patient/")
    response = client.get(path)
    page = response.content.decode()
    assert response.status_code == 200
    assert f'data-patient-id="{PATIENT}"' in page
    data = re.search(r'<script id="hba1c-data"[^>]*>(.*?)</script>', page)
    assert data
    points = json.loads(data.group(1))["points"]
    assert len(points) > 10
    assert page.count("<tr><th scope") + page.count('<th scope="row"') > len(points)


def test_the_header_names_the_person_and_no_page_has_a_raw_id(client, ehr):
    page = client.get(launch(client, ehr)).content.decode()
    header = re.search(r'<span class="who">.*', page)
    assert header
    assert "Brandvold" in header[0]
    text = re.sub(r"<script.*?</script>|<[^>]*>", " ", page, flags=re.DOTALL)
    assert re.findall(r"[0-9a-f]{8}-[0-9a-f]{4}-", text) == []


def test_a_person_whom_the_ehr_does_not_name_has_an_account(client, ehr):
    path = launch(client, ehr, scope=SCOPE.replace("user/Practitioner.r", ""))
    page = client.get(path).content.decode()
    user = json.loads(client.get(f"{prefix_of(path)}/status.json").content)["user"]
    assert "your hospital account" in page
    assert user not in page


def test_advice_to_connect_has_the_link(client, ehr):
    path = launch(client, ehr)
    del ehr.data["Patient"][PATIENT]
    page = client.get(path).content.decode()
    assert "fhir_not_found" in page
    assert page.count('href="/smart/login/"') > 0


def test_the_search_is_the_one_of_the_specification_over_two_pages(client, ehr):
    path = launch(client, ehr)
    ehr.clear_requests()
    client.get(path)
    searches = [r for r in ehr.requests if r.path.endswith("/Observation")]
    assert searches[0].query == [
        ("code", "4548-4"),
        ("_sort:desc", "date"),
        ("_count", "10"),
        ("patient", PATIENT),
    ]
    assert len(ehr.requests) == 3  # the patient, and two pages of results


def test_links_of_a_launched_page_keep_its_prefix_and_the_packages_do_not(client, ehr):
    path = launch(client, ehr)
    page = client.get(path).content.decode()
    assert f'href="{prefix_of(path)}/"' in page
    assert 'action="/smart/logout/"' in page
    assert 'src="/static/example/vendor/chart.js-4.6.1/chart.umd.min.js"' in page


def test_without_a_launch_the_patient_page_says_how_to_open_one(client, db):
    response = client.get("/patient/")
    assert response.status_code == 403
    assert b"A1c Trend" in response.content


@pytest.mark.compliance("RESP-13")
@pytest.mark.parametrize(("needed", "shown"), [(True, True), (False, False)])
def test_the_banner_is_left_out_only_if_the_ehr_shows_it(client, ehr, needed, shown):
    path = launch(client, ehr, need_patient_banner=needed)
    assert (b'class="smart-banner"' in client.get(path).content) is shown


@pytest.mark.compliance("RESP-04")
def test_a_scope_that_was_not_granted_is_told_on_the_page(client, ehr):
    path = launch(client, ehr, scope="openid fhirUser patient/Patient.rs")
    response = client.get(path)
    assert response.status_code == 200
    assert b"has not allowed this app to see them" in response.content
    assert b"fhir_forbidden" in response.content


@pytest.mark.compliance("FHIR-07")
def test_withheld_results_are_not_called_none(client, ehr):
    path = launch(client, ehr)
    issue = {"severity": "warning", "code": "suppressed"}
    outcome = {"resourceType": "OperationOutcome", "issue": [issue]}
    entry = [{"search": {"mode": "outcome"}, "resource": outcome}]
    answer(ehr, "/Observation", entry=entry, total=0, link=[])
    page = client.get(path).content
    assert b"has no HbA1c results" not in page
    assert b"withholds" in page


def test_a_patient_without_results_gets_a_clear_page(client, ehr):
    with_results = {
        resource["subject"]["reference"]
        for resource in ehr.data["Observation"].values()
        if resource["code"]["coding"][0]["code"] == "4548-4"
    }
    patient = next(p for p in ehr.data["Patient"] if f"Patient/{p}" not in with_results)
    response = client.get(launch(client, ehr, patient=patient))
    assert response.status_code == 200
    assert b"has no HbA1c results for this patient" in response.content


def test_names_from_the_ehr_are_escaped(client, ehr):
    ehr.data["Patient"][PATIENT]["name"] = [{"text": "<script>alert(1)</script>"}]
    page = client.get(launch(client, ehr)).content
    assert b"<script>alert" not in page
    assert b"&lt;script&gt;alert" in page


def test_home_names_the_patient_of_the_tab(client, ehr):
    ehr.data["Patient"][PATIENT]["name"] = [{"text": "Ada Byron"}]
    path = launch(client, ehr)
    assert (
        b"The chart of <strong>Ada Byron</strong>"
        in client.get(f"{prefix_of(path)}/").content
    )


def test_status_without_a_launch(client, db):
    response = client.get("/status.json")
    assert response.status_code == 200
    assert json.loads(response.content) == {
        "launched": False,
        "launch": None,
        "user": None,
        "fhir_user": None,
        "fhir_server": None,
        "patient": None,
        "encounter": None,
        "scope": None,
        "need_patient_banner": None,
        "intent": None,
        "tenant": None,
    }


def test_status_of_a_launch(client, ehr):
    path = launch(client, ehr, intent="review", tenant="t1")
    prefix = prefix_of(path)
    status = json.loads(client.get(f"{prefix}/status.json").content)
    assert status["user"]
    assert status["fhir_user"].startswith("Practitioner/")
    assert status == {
        "launched": True,
        "launch": prefix.removeprefix("/~"),
        "user": status["user"],
        "fhir_user": status["fhir_user"],
        "fhir_server": ehr.base_url,
        "patient": PATIENT,
        "encounter": None,
        "scope": status["scope"],
        "need_patient_banner": True,
        "intent": "review",
        "tenant": "t1",
    }
    assert "patient/Patient.rs" in status["scope"]


def test_status_without_prefix_does_not_guess(client, ehr):
    launch(client, ehr)
    assert json.loads(client.get("/status.json").content)["launched"] is True
    launch(client, ehr)
    response = client.get("/status.json")
    assert response.status_code == 200
    assert json.loads(response.content)["launched"] is False


@pytest.mark.parametrize("path", ["status.json", "fhir/Patient/x", "patient/"])
def test_an_unknown_a_foreign_and_an_ended_key_are_refused(client, ehr, path):
    prefix = prefix_of(launch(client, ehr))
    assert client.get(f"/~{'x' * 24}/{path}").status_code == 404
    assert make_browser().get(f"{prefix}/{path}").status_code == 403
    client.post("/smart/logout/")
    assert client.get(f"{prefix}/{path}").status_code == 410


def test_the_pass_through_reads_and_searches(client, ehr):
    prefix = prefix_of(launch(client, ehr))
    response = client.get(f"{prefix}/fhir/Patient/{PATIENT}")
    assert response.status_code == 200
    assert json.loads(response.content)["id"] == PATIENT
    response = client.get(f"{prefix}/fhir/Observation?code=4548-4&patient={PATIENT}")
    assert json.loads(response.content)["resourceType"] == "Bundle"


def test_the_pass_through_never_shows_another_patient(client, ehr):
    prefix = prefix_of(launch(client, ehr))
    other = next(patient for patient in ehr.data["Patient"] if patient != PATIENT)
    assert client.get(f"{prefix}/fhir/Patient/{other}").status_code in {403, 404}
    assert client.get(f"{prefix}/fhir/Patient/no-such").status_code in {403, 404}


def test_the_pass_through_needs_a_launch(client, db):
    response = client.get(f"/fhir/Patient/{PATIENT}")
    assert response.status_code == 403
    assert json.loads(response.content)["resourceType"] == "OperationOutcome"


def test_the_pass_through_accepts_no_post_and_wants_no_token_for_that(ehr):
    client = make_browser()
    client.handler.enforce_csrf_checks = True
    prefix = prefix_of(launch(client, ehr))
    response = client.post(f"{prefix}/fhir/Patient")
    assert response.status_code == 405


def test_standalone_launch_arrives_at_the_patient_page(client, ehr):
    url = ehr.authorize(start_login(client), patient=PATIENT)
    path = get_callback(client, url)["Location"]
    assert f'data-patient-id="{PATIENT}"'.encode() in client.get(path).content


def test_staff_sign_in_and_out(client, django_user_model):
    django_user_model.objects.create_user("nurse", password="pw")
    response = client.post("/accounts/login/", {"username": "nurse", "password": "no"})
    assert "Both may be case-sensitive" in response.content.decode()
    response = client.post("/accounts/login/", {"username": "nurse", "password": "pw"})
    assert response["Location"] == "/"
    assert b"nurse" in client.get("/").content
    assert json.loads(client.get("/status.json").content)["user"] == "nurse"
    client.post("/accounts/logout/")
    assert json.loads(client.get("/status.json").content)["user"] is None


def test_a_page_that_is_not_there(client, db):
    response = client.get("/no/such/page")
    assert response.status_code == 404
    assert b"There is no such page" in response.content


def test_forms_of_the_packages_pages_can_be_sent(client, ehr):
    # With "no-referrer" alone, browsers send "Origin: null", which the CSRF check
    # refuses; a meta element comes after the header and wins.
    launch(client, ehr)
    for path in (
        "/smart/login/?server=harbour",
        "/smart/connections/",
        "/~" + "x" * 24,
    ):
        page = client.get(path)
        assert b'<meta name="referrer" content="strict-origin">' in page.content
        assert b"csrfmiddlewaretoken" in page.content


def test_patient_who_comes_back_opens_the_record_from_the_home_page(client, ehr, user):
    scope = f"launch/patient offline_access {SCOPE}"
    ClientRegistration.objects.update(standalone_scope=scope)
    client.force_login(user)
    url = ehr.authorize(start_login(client), user=f"Patient/{PATIENT}")
    get_callback(client, url)
    client.post("/smart/logout/")
    client.force_login(user)
    page = client.get("/").content.decode()
    assert "Marisol Jean Quillfeather" in page
    grant = re.search(r'name="grant" value="(\d+)"', page)
    assert grant
    values = {"grant": grant[1], "next": "/patient/"}
    path = client.post("/smart/connections/open/", values)["Location"]
    assert f'data-patient-id="{PATIENT}"' in client.get(path).content.decode()
    # Or with a link to the page.
    assert client.get("/patient/", headers={"accept": "text/html"})["Location"] == path
