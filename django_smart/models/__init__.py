"""The models: servers, registrations, launches and grants."""

from __future__ import annotations

from .grant import TokenGrant
from .identity import Identity
from .key import SigningKey
from .launch import Launch
from .registration import ClientRegistration
from .server import FHIRServer
from .server_state import ServerState
from .task_run import RefreshCount, TaskRun

__all__ = [
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
