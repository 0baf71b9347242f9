"""FHIR REST with a SMART grant: plain dicts in, plain dicts out; no Django."""

from __future__ import annotations

from django_smart.fhir.adapters import FHIRSession
from django_smart.fhir.asynchronous import (
    AsyncFHIRClient,
    AsyncSearchStream,
)
from django_smart.fhir.batch import Batch, BatchAnswer
from django_smart.fhir.bulk import BulkExport
from django_smart.fhir.client import FHIRClient
from django_smart.fhir.connection import Observer, TokenSource, Transport
from django_smart.fhir.json import Number, dump_json, load_json
from django_smart.fhir.messages import FHIRExchange
from django_smart.fhir.names import get_output, get_outputs
from django_smart.fhir.paging import History, SearchPage, SearchResult, SearchStream
from django_smart.fhir.parameters import AnyOf, Quantity, Token, escape
from django_smart.fhir.searching import PatientRecord

__all__ = [
    "AnyOf",
    "AsyncFHIRClient",
    "AsyncSearchStream",
    "Batch",
    "BatchAnswer",
    "BulkExport",
    "FHIRClient",
    "FHIRExchange",
    "FHIRSession",
    "History",
    "Number",
    "Observer",
    "PatientRecord",
    "Quantity",
    "SearchPage",
    "SearchResult",
    "SearchStream",
    "Token",
    "TokenSource",
    "Transport",
    "dump_json",
    "escape",
    "get_output",
    "get_outputs",
    "load_json",
]
