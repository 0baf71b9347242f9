"""An EHR whose chart changes at random, and which makes trouble at random."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from werkzeug.wrappers import Response

from django_smart.contrib.records.sinks import ModelSink, NDJSONSink
from django_smart.fhir.json import load_json
from django_smart.testing import EHRSimulator
from tests.ehr import PATIENT

TYPES = ("AllergyIntolerance", "Condition", "MedicationRequest", "Observation")
CATEGORIES = ("laboratory", "vital-signs", "survey")
_DEEDS = ("add", "late", "add other", "change", "delete", "move", "merge")
OTHER = "1c6a5a3e-4d2b-4c8e-9a70-0f5b7d1e9b11"


_NONE = {"subject": {"reference": ""}}


class KilledError(BaseException):
    """The process is killed here."""


class Clock:
    """The EHR's clock, which is not ours: hours behind, or ahead."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class World:
    """One patient's chart, and how the EHR treats those who read it."""

    def __init__(self, ehr: EHRSimulator, clock: Clock, rng: random.Random) -> None:
        self.ehr, self.clock, self.rng = ehr, clock, rng
        self.is_quiet = True
        self.refused: set[str] = set()
        self.wants_category = rng.random() < 0.3
        self.knows_last_updated = rng.random() < 0.8
        self.page_size = rng.choice([2, 5, 20])
        self.number = 0
        for kind in TYPES:
            self.ehr.data[kind].clear()
        for _ in range(rng.randrange(10, 40)):
            self.add()
        ehr.interceptors.append(self.respond)

    # The chart

    def add(self, patient: str = PATIENT) -> None:
        self.number += 1
        kind = self.rng.choice(TYPES)
        name = "patient" if kind == "AllergyIntolerance" else "subject"
        coding = {"code": self.rng.choice(CATEGORIES)}
        self.put(
            {
                "resourceType": kind,
                "id": f"one-{self.number}",
                name: {"reference": f"Patient/{patient}"},
                "status": "final",
                "category": [{"coding": [coding]}],
                "note": [{"text": "1"}],
            }
        )

    def put(self, resource: dict[str, Any]) -> None:
        self._write(resource["resourceType"], resource["id"], resource)

    def _write(self, kind: str, id_: str, resource: dict[str, Any] | None) -> None:
        self.clock.now += self.rng.choice([0, 0.2, 30])
        # Its tokens keep our time.
        clock, self.ehr.clock = self.ehr.clock, self.clock
        method = "DELETE" if resource is None else "PUT"
        self.ehr.versions.put(kind, id_, resource, method=method)
        self.ehr.clock = clock

    def names(self) -> list[tuple[str, str]]:
        return [(kind, id_) for kind in TYPES for id_ in self.ehr.data[kind]]

    def change(self) -> None:
        """One thing happens at the EHR."""
        names = self.names()
        deed = self.rng.choice(_DEEDS)
        if deed == "add":
            self.add()
        elif deed == "late":
            # Its search shows some changes only minutes after their time.
            self.clock.now -= 120
            self.add()
            self.clock.now += 120
        elif deed == "add other":
            self.add(OTHER)
        elif names:
            kind, id_ = self.rng.choice(names)
            resource = self.ehr.data[kind][id_]
            if deed == "change":
                text = str(self.rng.random())
                self.put({**resource, "note": [{"text": text}]})
            elif deed == "delete":
                self._write(kind, id_, None)
            elif deed == "merge":
                # It was in the wrong chart.
                name = "patient" if "patient" in resource else "subject"
                owner = OTHER if self._is_own(resource) else PATIENT
                self.put({**resource, name: {"reference": f"Patient/{owner}"}})
            else:
                category = [{"coding": [{"code": self.rng.choice(CATEGORIES)}]}]
                self.put({**resource, "category": category})

    def record(self) -> dict[str, str]:
        """What the sink should have: the note of each of the patient's resources."""
        found = {}
        for kind, id_ in self.names():
            resource = self.ehr.data[kind][id_]
            if self._is_own(resource):
                found[f"{kind}/{id_}"] = resource["note"][0]["text"]
        return found

    @staticmethod
    def _is_own(resource: dict[str, Any]) -> bool:
        subject = resource.get("subject") or resource["patient"]
        return bool(subject["reference"] == f"Patient/{PATIENT}")

    # The EHR

    def respond(self, handler: Any, request: Any) -> Response:
        path = request.path.rsplit("/", 1)[-1]
        query = request.environ.get("QUERY_STRING", "")
        if "/fhir" not in request.path or path == "metadata":
            return handler(request)  # type: ignore[no-any-return]
        if path in self.refused:
            return self._refuse(403)
        if path == "Observation" and self.wants_category and "category" not in query:
            return self._refuse(400)
        if not self.knows_last_updated and "_lastUpdated" in query:
            return self._refuse(400)
        if not self.is_quiet:
            if self.rng.random() < 0.1:
                return self._refuse(self.rng.choice([401, 429, 500, 503]))
            if "_getpages" in query:
                self._spoil_pages()
            if self.rng.random() < 0.2:
                self.change()
        kind = request.path.split("/")[-2]
        if kind in TYPES and not self._is_own(self.ehr.data[kind].get(path, _NONE)):
            return self._refuse(404)
        shorten_pages(request, self.page_size)
        return handler(request)  # type: ignore[no-any-return]

    def _spoil_pages(self) -> None:
        """The next link runs out, or the pages shift."""
        if self.rng.random() < 0.1:
            self.ehr.saved_searches.clear()
        for saved in self.ehr.saved_searches.values():
            if saved.resources and self.rng.random() < 0.5:
                saved.resources.pop(0)

    def _refuse(self, status: int) -> Response:
        headers = {"Retry-After": "0"} if status in {429, 503} else {}
        return Response("{}", status, headers, content_type="application/fhir+json")


class KillableModelSink(ModelSink):
    """A process that is killed before or after it stores."""

    name = "killable"

    def __init__(self, world: World) -> None:
        self.world = world

    def put(self, resources: Sequence[dict[str, Any]]) -> None:
        kill_at_random(self.world)
        super().put(resources)
        kill_at_random(self.world)

    def read(self) -> dict[str, str]:
        resources = (copy.resource for copy in self._run.copies.all())
        return read_notes(resources)


class KillableNDJSONSink(NDJSONSink):
    """The same, with files."""

    name = "killable files"

    def __init__(self, world: World, directory: Any) -> None:
        super().__init__(directory)
        self.world = world

    def put(self, resources: Sequence[dict[str, Any]]) -> None:
        super().put(resources)
        kill_at_random(self.world)

    def read(self) -> dict[str, str]:
        """The record; nothing may have been written twice."""
        found: dict[str, dict[str, Any]] = {}
        path = self._path
        for line in path.read_bytes().splitlines() if path.exists() else ():
            resource = load_json(line)
            if resource["resourceType"] == "Bundle":
                del found[resource["entry"][0]["request"]["url"]]
                continue
            name = f"{resource['resourceType']}/{resource['id']}"
            assert found.get(name) != resource, "delivered twice"
            found[name] = resource
        return read_notes(found.values())


def shorten_pages(request: Any, size: int) -> None:
    """As an EHR that sends fewer resources than it was asked for."""
    count = f"_count={size}".encode()
    request.query_string = request.query_string.replace(b"_count=100", count)


def kill_at_random(world: World) -> None:
    if not world.is_quiet and world.rng.random() < 0.1:
        raise KilledError


def read_notes(resources: Any) -> dict[str, str]:
    return {
        f"{one['resourceType']}/{one['id']}": one["note"][0]["text"]
        for one in resources
        if one["resourceType"] in TYPES
    }
