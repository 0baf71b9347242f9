"""What people look for is found by the search of the documentation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import DOCS

# What people type, and the pages of which one has to be among the first three hits.
_PHRASES = {
    "getting started": "tutorial/first-launch",
    "quickstart": "tutorial/first-launch",
    "Epic sandbox": "tutorial/first-sandbox",
    "what is FHIR": "explanation/smart-for-django-developers",
    "async view": "how-to/views",
    "cache": "how-to/views",
    "two tabs": "explanation/right-patient",
    "returning patient": "how-to/when-a-patient-comes-back",
    "pagination": "how-to/search",
    "PDF": "how-to/writing",
    "react frontend": "how-to/fhir-in-the-browser",
    "patient banner": "how-to/templates",
    "offline access": "how-to/keep-access-fresh",
    "backend services": "how-to/keep-access-fresh",
    "bulk export": "how-to/bulk-export",
    "custom user model": "how-to/users-and-sign-in",
    "allauth": "how-to/users-and-sign-in",
    "logout": "how-to/users-and-sign-in",
    "iframe": "how-to/embed-in-a-frame",
    "translate": "how-to/style",
    "django rest framework": "how-to/other-libraries",
    "test without an EHR": "how-to/test-your-app",
    "CDS Hooks": "how-to/cookbook",
    "multi tenant": "how-to/connect-many-hospitals",
    "Cerner": "how-to/register-oracle-health",
    "Keycloak": "how-to/register-behind-an-authorization-server",
    "deploy nginx": "how-to/deploy-behind-a-proxy",
    "celery beat": "how-to/celery",
    "cron without celery": "how-to/celery",
    "health check": "how-to/monitor",
    "restore backup": "how-to/runbooks",
    "rotate keys": "how-to/keys-and-logs",
    "logging PHI": "how-to/keys-and-logs",
    "scaling": "explanation/capacity",
    "upgrade": "how-to/upgrade",
    "admin permissions": "how-to/use-the-admin",
    "invalid redirect uri": "how-to/troubleshooting",
    "smart_doctor": "how-to/troubleshooting",
    "error codes": "reference/codes",
    "refresh token": "explanation/refresh",
    "wrong patient": "explanation/right-patient",
    "threat model": "explanation/security-model",
    "report a vulnerability": "explanation/security-model",
    "HIPAA": "explanation/security-questionnaire",
    "GDPR": "explanation/security-questionnaire",
    "architecture": "explanation/layers",
    "compare fhirpy": "evidence",
}
_HITS = 3


@pytest.mark.node
@pytest.mark.process
def test_phrases_lead_to_their_pages(tmp_path: Path) -> None:
    build = (sys.executable, "-m", "sphinx", "-q", "-b", "html", DOCS, tmp_path)
    subprocess.run(build, check=True, cwd=DOCS.parent)
    script = Path(__file__).with_name("search.js")
    printed = subprocess.run(
        ["node", script, tmp_path, *_PHRASES],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(printed.stdout)
    missed = {
        phrase: hits[:_HITS]
        for phrase, hits in found.items()
        if _PHRASES[phrase] not in hits[:_HITS]
    }
    assert missed == {}
