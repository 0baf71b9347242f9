"""
The admin, where operators register clients and find out why a launch failed.

Secrets can be set and never read.  No page shows tokens, digests or leases.  Workers
refresh and revoke, so that no page waits for many EHRs.  Only a registration asks its
one EHR what it offers, while the operator waits.
"""

from __future__ import annotations

from .grant import TokenGrantAdmin
from .identity import IdentityAdmin
from .key import SigningKeyAdmin
from .launch import LaunchAdmin
from .registration import ClientRegistrationAdmin
from .server import FHIRServerAdmin

__all__ = [
    "ClientRegistrationAdmin",
    "FHIRServerAdmin",
    "IdentityAdmin",
    "LaunchAdmin",
    "SigningKeyAdmin",
    "TokenGrantAdmin",
]
