"""Names that the tests and the processes they start have in common."""

from __future__ import annotations

CLIENT_ID = "growth-chart"
CLIENT_SECRET = "a secret: 100 % safe"
PATIENT = "87a339d0-8cae-418e-89c7-8651e6aab3c6"
