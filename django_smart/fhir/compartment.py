"""
The record of one patient: FHIR's compartment, as searches reach it.

Spec: FHIR R4, "CompartmentDefinition", http://hl7.org/fhir/R4/compartmentdefinition-patient.html
(4.0.1); the parameters are those of http://hl7.org/fhir/R4/searchparameter-registry.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from django_smart.exceptions import FHIRRequestError, ForeignPatientError
from django_smart.fhir.interactions import build_operation
from django_smart.fhir.messages import (
    process_bundle_response,
    validate_id,
    validate_resource_type,
)
from django_smart.fhir.paging import iter_bundles
from django_smart.fhir.parameters import SearchParams, build_search_query
from django_smart.fhir.values import Reference

if TYPE_CHECKING:
    from django_smart.fhir.client import FHIRClient
    from django_smart.fhir.search import SearchResult

__all__ = ["PatientRecord", "find_patient_parameter"]

# Types of the compartment that have the parameter "patient".
_TYPES = """
    Account AllergyIntolerance Appointment AppointmentResponse AuditEvent Basic
    BodyStructure CarePlan CareTeam ChargeItem Claim ClaimResponse ClinicalImpression
    Communication CommunicationRequest Composition Condition Consent Coverage
    CoverageEligibilityRequest CoverageEligibilityResponse DetectedIssue DeviceRequest
    DeviceUseStatement DiagnosticReport DocumentManifest DocumentReference Encounter
    EnrollmentRequest EpisodeOfCare ExplanationOfBenefit FamilyMemberHistory Flag Goal
    ImagingStudy Immunization ImmunizationEvaluation ImmunizationRecommendation Invoice
    List MeasureReport Media MedicationAdministration MedicationDispense
    MedicationRequest MedicationStatement MolecularSequence NutritionOrder Observation
    Person Procedure Provenance QuestionnaireResponse RelatedPerson RequestGroup
    ResearchSubject RiskAssessment ServiceRequest Specimen SupplyDelivery Task
    VisionPrescription
"""
_BY_PATIENT = frozenset(_TYPES.split())
# The others, with what names the patient there.
_BY_OTHER = {
    "AdverseEvent": "subject",
    "Group": "member",
    "Patient": "_id",
    "Schedule": "actor",
    "SupplyRequest": "subject",
}
# What names a patient whatever the type; FHIR has the two side by side.
_NAMES = ("patient", "subject")


def find_patient_parameter(resource_type: str) -> str:
    """
    The search parameter that names the patient.

    Raises:
        FHIRRequestError: resources of this type belong to no patient in R4.
    """
    name = _BY_OTHER.get(validate_resource_type(resource_type))
    if name is None and resource_type in _BY_PATIENT:
        name = "patient"
    if name is None:
        raise FHIRRequestError(
            f"{resource_type} is not of R4's patient compartment: use search(), and "
            "name the parameter that selects the patient."
        )
    return name


class PatientRecord:
    """
    One patient's record: what is asked for here is asked for about this patient.

    Attributes:
        id: of the patient.
        reference: such as ``Patient/123``, for what is written about the patient.
    """

    def __init__(self, client: FHIRClient, patient_id: str) -> None:
        self._client = client
        self.id = validate_id(patient_id)
        self.reference = f"Patient/{self.id}"

    def __repr__(self) -> str:
        return f"<PatientRecord at {self._client!r}>"

    def read(self) -> dict[str, Any]:
        """Read the ``Patient``."""
        return self._client.read("Patient", self.id)

    def search(
        self, resource_type: str, params: SearchParams | None = None, /, **keywords: Any
    ) -> SearchResult[dict[str, Any]]:
        """
        Search in this record: ``record.search("Observation", code="4548-4")``.

        Args:
            params, keywords: as for ``FHIRClient.search``, less what names the patient.

        Raises:
            ForeignPatientError: a parameter names another patient; nothing was sent.
            FHIRRequestError: as ``FHIRClient.search``, or resources of this type belong
                to no patient.
        """
        name = find_patient_parameter(resource_type)
        pairs = list(params.items() if isinstance(params, Mapping) else params or ())
        for given, value in (*pairs, *keywords.items()):
            self._check(name, given, value)
        # An id alone means a patient in "patient"; in the others it could be anything.
        own = self.id if name in {"patient", "_id"} else self.reference
        pairs = [pair for pair in pairs if pair[0] != name]
        keywords.pop(name, None)
        return self._client.search(resource_type, [(name, own), *pairs], **keywords)

    def everything(self, **params: Any) -> Iterator[dict[str, Any]]:
        """
        Ask for the whole record, ``Patient/$everything``, page after page.

        Args:
            params: such as ``_since``, ``_type``, ``_count``, ``start`` and ``end``.
        """
        interaction = build_operation(
            "everything", "Patient", self.id, query=build_search_query(None, params)
        )

        def fetch_bundle(url: str) -> dict[str, Any]:
            response = self._client.perform(interaction, url=url)
            return process_bundle_response(
                response, type="searchset", what="operation everything"
            )

        url = self._client.build_url(interaction.path)
        for page in iter_bundles(fetch_bundle, url, what="operation everything"):
            for entry in page["entry"]:
                if isinstance(resource := entry.get("resource"), dict):
                    yield resource
            del page

    def _check(self, name: str, given: str, value: object) -> None:
        """Refuse a parameter that would search for somebody else."""
        bare = given.partition(":")[0].partition("__")[0]
        if bare == name or (bare in _NAMES and name in _NAMES):
            base_url = self._client.base_url
            mine = {self.id, self.reference, f"{base_url}/{self.reference}"}
            is_one = isinstance(value, str | Reference) and bare == given
            if not is_one or str(value) not in mine:
                raise ForeignPatientError(
                    f'"{given}" selects a patient, which this record has done.'
                )
