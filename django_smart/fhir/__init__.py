"""FHIR REST with a SMART grant: plain dicts in, plain dicts out; no Django."""

from __future__ import annotations

from django_smart.fhir.asynchronous import AsyncFHIRClient, AsyncSearchResult
from django_smart.fhir.batch import Batch, BatchAnswer
from django_smart.fhir.bulk import BulkExport, ExportedFile
from django_smart.fhir.client import FHIRClient
from django_smart.fhir.compartment import PatientRecord
from django_smart.fhir.messages import FHIRExchange
from django_smart.fhir.paging import History
from django_smart.fhir.search import SearchPage, SearchResult
from django_smart.fhir.session import FHIRSession
from django_smart.fhir.values import AnyOf, Quantity, Reference, Token, escape

__all__ = [
    "AnyOf",
    "AsyncFHIRClient",
    "AsyncSearchResult",
    "Batch",
    "BatchAnswer",
    "BulkExport",
    "ExportedFile",
    "FHIRClient",
    "FHIRExchange",
    "FHIRSession",
    "History",
    "PatientRecord",
    "Quantity",
    "Reference",
    "SearchPage",
    "SearchResult",
    "Token",
    "escape",
]
