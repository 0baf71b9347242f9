"""The page on bulk export, by the code that it shows."""

from __future__ import annotations

from typing import Any

import pytest

from django_smart.clients import backend_client_for
from tests.docs.blocks import execute, read_blocks
from tests.factories import make_service

pytestmark = pytest.mark.django_db


def test_job_of_the_page_goes_on_after_a_crash(ehr):
    service = make_service(ehr)
    job, _, task = read_blocks("how-to/bulk-export.rst")
    compile(task.code, "how-to", "exec")
    names: dict[str, Any] = {}
    exec(job.code.replace('"Group/diabetes"', '"Patient"'), names)

    def make_client(registration: Any) -> Any:
        client = backend_client_for(registration)
        client.sleep = lambda seconds: None
        return client

    names["backend_client_for"] = make_client
    kept: list[str] = [""]
    handled: list[str] = []

    def handle(resource: dict[str, Any]) -> None:
        handled.append(resource["id"])
        if len(handled) == 5:
            raise MemoryError

    job_arguments = (service, handle, lambda: kept[-1], kept.append)
    with pytest.raises(MemoryError):
        names["export_observations"](*job_arguments)
    assert names["export_observations"](*job_arguments)
    expected = [*ehr.data["Patient"], *ehr.data["Observation"]]
    assert handled == expected[:5] + expected


def test_mirror_of_the_page_follows_changes_and_deletions(ehr):
    service = make_service(ehr)
    job, update, *_ = read_blocks("how-to/bulk-export.rst")
    names = execute(job, update)

    def make_client(registration: Any) -> Any:
        client = backend_client_for(registration)
        client.sleep = lambda seconds: None
        return client

    names["backend_client_for"] = make_client
    mirror: dict[str, Any] = {}
    last = names["update_mirror"](service, mirror, "")
    assert len(mirror) == len(ehr.data["Patient"]) + len(ehr.data["Observation"])
    first, second = list(ehr.data["Observation"])[:2]
    ehr.versions.put("Observation", first, None, method="DELETE")
    changed = {**ehr.data["Observation"][second], "status": "amended"}
    ehr.versions.put("Observation", second, changed, method="PUT")
    assert names["update_mirror"](service, mirror, last) > last
    expected = {**ehr.data["Patient"], **ehr.data["Observation"]}
    assert {each["id"] for each in mirror.values()} == set(expected)
    assert mirror[f"Observation/{second}"]["status"] == "amended"
    ehr.bulk.problems.append("one record is locked")
    with pytest.raises(RuntimeError):
        names["update_mirror"](service, mirror, last)
