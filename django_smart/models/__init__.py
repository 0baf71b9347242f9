"""The models: servers, registrations, launches, grants and brands."""

from __future__ import annotations

from .brand import Brand, BrandAccess, BrandBundle, BrandEndpoint, BrandWord
from .grant import TokenGrant
from .identity import Identity
from .key import SigningKey
from .launch import Launch
from .registration import ClientRegistration
from .server import FHIRServer
from .server_state import ServerState
from .task_run import RefreshCount, TaskRun

__all__ = [
    "Brand",
    "BrandAccess",
    "BrandBundle",
    "BrandEndpoint",
    "BrandWord",
    "ClientRegistration",
    "FHIRServer",
    "Identity",
    "Launch",
    "RefreshCount",
    "ServerState",
    "SigningKey",
    "TaskRun",
    "TokenGrant",
]
