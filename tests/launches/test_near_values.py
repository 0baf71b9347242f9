"""What differs in case or by a space at the end is another one, on every database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

import pytest

from django_smart.models import FHIRServer, Identity
from django_smart.testing import EHRSimulator
from django_smart.testing.simulator.people import User
from tests.ehr import launch, make_browser

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.urls("tests.launch_urls"),
    pytest.mark.usefixtures("registration", "quick_keys"),
]

near = pytest.mark.parametrize(
    "change",
    [str.swapcase, str.upper, lambda value: f"{value} ", lambda value: f"{value}\t"],
    ids=["other case", "upper case", "space", "tab"],
)


@near
@pytest.mark.compliance("EHRL-03")
def test_issuer_that_is_nearly_the_same_is_unknown(
    ehr: EHRSimulator, change: Callable[[str], str]
) -> None:
    parts = urlsplit(ehr.base_url)
    iss = parts._replace(path=change(parts.path)).geturl()
    response = make_browser().get("/smart/launch/", {"iss": iss, "launch": "x"})
    assert response.status_code == 400
    assert ehr.requests == []
    assert FHIRServer.objects.count() == 1


def _with_subject(user: User, subject: str) -> User:
    """*user*, whose ``sub`` is *subject*."""
    clinician = type("Clinician", (User,), {"subject": subject})
    changed: User = clinician(**asdict(user))
    return changed


@pytest.mark.compliance("IDT-09")
def test_subjects_that_are_nearly_the_same_are_different_people(
    ehr: EHRSimulator,
) -> None:
    subjects = ["Abcdef", "abcdef", "ABCDEF", "abcdef ", " abcdef", "\xe0bcdef"]
    reference, user = next(iter(ehr.users.items()))
    users: dict[str, Any] = {}
    for subject in subjects:
        ehr.users[reference] = _with_subject(user, subject)
        opened = launch(make_browser(), ehr)
        assert opened.user is not None
        users[subject] = opened.user.pk
    assert len({*users.values()}) == len(subjects)
    assert Identity.objects.count() == len(subjects)
    for subject in subjects:
        ehr.users[reference] = _with_subject(user, subject)
        assert launch(make_browser(), ehr).user_id == users[subject]
