"""
The people of the simulated hospital. None of them exists.

Phone numbers are of the range kept for fiction; places are invented.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

__all__ = ["CLINICIANS", "PATIENTS", "Clinician", "Person", "User", "users"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """One patient, and the course that their data takes."""

    patient_id: str
    given: tuple[str, ...]
    family: str
    gender: str
    birth_date: str
    mrn: str
    street: str
    city: str
    postal_code: str
    phone: str
    email: str
    native_name: str | None = None
    a1c: tuple[float, ...] = ()
    """HbA1c in % at turning points; the values between are interpolated."""
    a1c_count: int = 0
    weight: float = 70.0
    height: float = 170.0
    conditions: tuple[str, ...] = ()
    medications: tuple[str, ...] = ()
    allergies: tuple[str, ...] = ()

    @property
    def display_name(self) -> str:
        return f"{self.given[0]} {self.family}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clinician:
    """One practitioner."""

    practitioner_id: str
    given: str
    family: str
    prefix: str
    specialty: str
    npi: str

    @property
    def display_name(self) -> str:
        return f"{self.prefix} {self.given} {self.family}"


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Somebody who can sign in to the EHR."""

    reference: str
    """Of their own resource: ``Practitioner/…`` or ``Patient/…``."""
    name: str
    given_name: str
    family_name: str
    detail: str

    @property
    def subject(self) -> str:
        """The OpenID Connect ``sub``: stable, and no clue to the resource id."""
        return sha256(f"harbour-ehr:{self.reference}".encode()).hexdigest()[:32]

    @property
    def patient_id(self) -> str | None:
        """The id of their own record, if they are a patient."""
        kind, _, resource_id = self.reference.partition("/")
        return resource_id if kind == "Patient" else None


CLINICIANS = (
    Clinician(
        practitioner_id="b3f0c1d2-6a57-4d0e-9f55-2c1f5f0a7e01",
        given="Helena",
        family="Brandvold",
        prefix="Dr.",
        specialty="Endocrinology",
        npi="9990000015",
    ),
    Clinician(
        practitioner_id="5de4a6d8-0b3c-4f0b-8a44-7a9c5b1e3d02",
        given="Tomás",
        family="Achterberg",
        prefix="Dr.",
        specialty="Family medicine",
        npi="9990000023",
    ),
)

PATIENTS = (
    Person(
        patient_id="87a339d0-8cae-418e-89c7-8651e6aab3c6",
        given=("Marisol", "Jean"),
        family="Quillfeather",
        gender="female",
        birth_date="1967-04-19",
        mrn="HH-100482",
        street="14 Lantern Row",
        city="Saltmarsh Bay",
        postal_code="04999",
        phone="555-555-0114",
        email="marisol.quillfeather@example.org",
        a1c=(9.4, 8.1, 7.2, 6.8, 7.0),
        a1c_count=11,
        weight=84.0,
        height=166.0,
        conditions=("44054006", "38341003"),
        medications=("860975", "314076"),
        allergies=("91936005",),
    ),
    Person(
        patient_id="1c6a5a3e-4d2b-4c8e-9a70-0f5b7d1e9b11",
        given=("Søren", "Ægir"),
        family="Løvenskiold-Å",
        gender="male",
        birth_date="1954-11-02",
        mrn="HH-100517",
        street="3 Breakwater Lane",
        city="Saltmarsh Bay",
        postal_code="04999",
        phone="555-555-0131",
        email="soren@example.org",
        a1c=(7.1, 7.4, 8.3, 9.1, 7.9, 7.3),
        a1c_count=16,
        weight=97.0,
        height=184.0,
        conditions=("44054006", "38341003", "13644009"),
        medications=("860975", "617312"),
    ),
    Person(
        patient_id="2b7d9c40-95f1-4f6a-8d0e-6c3a1b2f4c22",
        given=("Xiuying",),
        family="Lu",
        native_name="陸秀英",
        gender="female",
        birth_date="1978-08-27",
        mrn="HH-100533",
        street="208 Ferry Street, Apt 5",
        city="Port Amity",
        postal_code="04998",
        phone="555-555-0142",
        email="xiuying.lu@example.org",
        a1c=(6.1, 6.3, 6.0, 5.7),
        a1c_count=12,
        weight=58.0,
        height=159.0,
        conditions=("15777000",),
        allergies=("91935009",),
    ),
    Person(
        patient_id="3fa8e1b7-21c4-4e0d-b6a9-5d4c7e8f0a33",
        given=("Desta", "Ruth"),
        family="Wolde",
        gender="female",
        birth_date="1989-01-30",
        mrn="HH-100548",
        street="77 Orchard Hill",
        city="Port Amity",
        postal_code="04998",
        phone="555-555-0155",
        email="desta.wolde@example.org",
        a1c=(10.8, 8.9, 7.6, 7.9, 7.1, 6.9),
        a1c_count=18,
        weight=63.0,
        height=168.0,
        conditions=("46635009",),
        medications=("311041",),
    ),
    Person(
        patient_id="4c0f2d95-7b18-4a63-9e2c-8f1a6b5d3e44",
        given=("Rafael", "José"),
        family="Ibáñez Peñaloza",
        gender="male",
        birth_date="1972-06-12",
        mrn="HH-100562",
        street="19 Cooper's Yard",
        city="Saltmarsh Bay",
        postal_code="04999",
        phone="555-555-0167",
        email="rafael@example.org",
        a1c=(7.8, 8.4, 8.9, 9.6),
        a1c_count=13,
        weight=91.0,
        height=175.0,
        conditions=("44054006", "414545008"),
        medications=("860975", "617312", "314076"),
        allergies=("294505008",),
    ),
    Person(
        patient_id="5d1a3eb6-8c29-4b74-8f3d-9a2b7c6e4f55",
        given=("Łucja",),
        family="Wiśniowiecka",
        gender="female",
        birth_date="1941-12-24",
        mrn="HH-100579",
        street="1 Old Lighthouse Road",
        city="Gull Point",
        postal_code="04997",
        phone="555-555-0173",
        email="lucja@example.org",
        a1c=(8.0, 7.7, 7.9, 8.2, 7.8),
        a1c_count=14,
        weight=66.0,
        height=158.0,
        conditions=("44054006", "38341003", "13644009"),
        medications=("314076", "617312"),
        allergies=("91936005", "294505008"),
    ),
    Person(
        patient_id="6e2b4fc7-9d3a-4c85-9a4e-0b3c8d7f5a66",
        given=("Kofi", "Nathaniel"),
        family="Yeboah",
        gender="male",
        birth_date="2014-03-08",
        mrn="HH-100596",
        street="52 Mariner's Way",
        city="Gull Point",
        postal_code="04997",
        phone="555-555-0188",
        email="family.yeboah@example.org",
        weight=38.0,
        height=144.0,
        conditions=("195967001",),
        medications=("745679",),
        allergies=("91935009",),
    ),
    Person(
        patient_id="7f3c5ad8-0e4b-4d96-8b5f-1c4d9e8a6b77",
        given=("Ingrid",),
        family="O'Shaughnessy",
        gender="female",
        birth_date="1995-09-15",
        mrn="HH-100604",
        street="8 Heron Court",
        city="Port Amity",
        postal_code="04998",
        phone="555-555-0196",
        email="ingrid@example.org",
        a1c=(5.4, 5.8, 5.5),
        a1c_count=11,
        weight=71.0,
        height=172.0,
    ),
)


def users() -> dict[str, User]:
    """Everybody who can sign in, by reference: clinicians first, then patients."""
    clinicians = [
        User(
            reference=f"Practitioner/{one.practitioner_id}",
            name=one.display_name,
            given_name=one.given,
            family_name=one.family,
            detail=one.specialty,
        )
        for one in CLINICIANS
    ]
    patients = [
        User(
            reference=f"Patient/{one.patient_id}",
            name=one.display_name,
            given_name=one.given[0],
            family_name=one.family,
            detail=f"born {one.birth_date}",
        )
        for one in PATIENTS
    ]
    return {user.reference: user for user in [*clinicians, *patients]}
