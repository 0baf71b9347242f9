"""Names that the tests, the simulated EHR and started processes have in common."""

from __future__ import annotations

CLIENT_ID = "growth-chart"
CLIENT_SECRET = "a secret: 100 % safe"
PATIENT = "87a339d0-8cae-418e-89c7-8651e6aab3c6"

BASE_URL = "https://ehr.example.org/v/r4/sim/abc/fhir"
SITE = "https://app.example.org"
REDIRECT_URI = f"{SITE}/smart/callback/"
EHR_SCOPE = "launch openid fhirUser patient/Patient.rs patient/Observation.rs"
STANDALONE_SCOPE = "openid fhirUser launch/patient patient/Patient.rs offline_access"

OURS = "django_smart.backends.SMARTAuthenticationBackend"
THEIRS = "mozilla_django_oidc.auth.OIDCAuthenticationBackend"

#: Authorization parameters of a server, too long for a URL: requests go by POST.
BY_POST = {"padding": "x" * 2000}
