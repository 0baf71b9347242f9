"""
The record of the launch's patient, as a script may see and change it.

The site's own code may receive whatever is the patient's.  A script may be that of a
patient with developer tools, so what it sends and receives must name no other patient
either, unless the view lists the element.

Spec: SMART App Launch 2.2, "Scopes for requesting FHIR Resources".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from django_smart.exceptions import FHIRRequestError, ForeignPatientError
from django_smart.fhir.compartment import (
    Record,
    get_compartment,
    iter_values,
    read_reference,
    selects,
)
from django_smart.fhir.interactions import Interaction, build_read
from django_smart.fhir.messages import process_read_response
from django_smart.fhir.record_check import record_check
from django_smart.protocol.messages import HTTPResponse

__all__ = ["ScriptRecord", "iter_links"]

# Each is read before a change is sent that refers to it.
_MAX_BINARIES = 100
# A reference to a patient in any spelling that some server may understand.
_PATIENT = re.compile(r"(?:^|[/\s:])patient\s*(?:[/?|#%\\]|$)", re.IGNORECASE)
# A URI need not be a reference; only one that looks like it is taken for one.
_PATIENT_URI = re.compile(r"(?:.*/)?Patient/[A-Za-z0-9\-.]{1,64}(?:/_history/.*)?")
_URIS = frozenset({"valueCanonical", "valueUri", "valueUrl"})
# Elements of data types: extensions, answers, annotations and signatures.
_REFERRING = frozenset({"authorReference", "onBehalfOf", "valueReference", "who"})
# With what a server may leave out when it stores a reference, such as a version
# or the base, which may be another name of the server.
_BINARY = re.compile(r"(?:\S*/)?Binary/([A-Za-z0-9\-.]{1,64})(?:[/?#\s].*)?", re.DOTALL)
# The resources in them are checked one by one.
_HELD = frozenset({"contained", "outcome", "resource"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptRecord(Record):
    """
    A record in which nothing names another patient.

    Args:
        resource_types: that scripts may see; ``None`` for all.
        other_patients: elements that may name others all the same, such as
            ``Coverage.subscriber``; never those that say whose a resource is.
        known: what bodies may refer to as well, see :meth:`check_links`.
        trusts_binaries: whether a ``Binary`` that does not say whose it is may be read.
    """

    resource_types: Collection[str] | None = None
    other_patients: Collection[str] = ()
    known: frozenset[str] = field(default=frozenset(), repr=False)
    trusts_binaries: bool = False

    def narrow(
        self,
        resource_type: str,
        pairs: list[tuple[str, str]],
        *,
        is_in_record: bool = False,
    ) -> list[tuple[str, str]]:
        """Add the patient, and the parameters of the only scope for searching."""
        scopes = list(self.get_scopes(resource_type, "s"))
        if len(scopes) == 1:
            # A server may forget them.
            pairs = [*pairs, *scopes[0].query]
        return Record.narrow(self, resource_type, pairs, is_in_record=is_in_record)

    # Resources

    def check_type(self, resource_type: str) -> None:
        """Refuse a type that the view does not list."""
        listed = self.resource_types
        if listed is not None and resource_type not in {*listed, "OperationOutcome"}:
            raise FHIRRequestError(
                f"{resource_type} is not allowed, unless the view's attribute "
                "resource_types allows it.",
                code="fhir_not_allowed",
            )

    def check_elements(
        self,
        resource: Mapping[str, Any],
        letters: str,
        own: Collection[str],
        urns: Collection[str],
    ) -> None:
        """Refuse a resource that names another patient, or that no scope selects."""
        kind = str(resource.get("resourceType"))
        granted = [s for s in self.get_scopes(kind, letters) if s.level == "patient"]
        if granted and not any(selects(scope, resource) for scope in granted):
            _refuse(f"No granted scope selects this {kind}.")
        is_nobodys = kind == "Binary" and "securityContext" not in resource
        if is_nobodys and not self.trusts_binaries:
            _refuse("The Binary is not known to be the patient's.")
        listed = self._get_listed(kind)
        if kind == "Patient" and "r" in letters:
            # Another record of the same person, as after every merge.
            listed.add("link.other")
        _Names(kind, listed, own, urns, self.known).check(resource, "")

    def check_patch(self, kind: str, patch: list[dict[str, Any]]) -> None:
        """Refuse a JSON Patch, with a path in each step, that names another patient."""
        names = _Names(kind, self._get_listed(kind), self.own)
        for step in patch:
            *parts, last = step["path"].split("/")
            path = ".".join(part for part in parts[1:] if not re.match(r"\d|-", part))
            names.check({last: step.get("value")}, path)

    def _get_listed(self, kind: str) -> set[str]:
        """The elements that may name other patients; whose it is, is checked anyway."""
        return {one.removeprefix(f"{kind}.") for one in self.other_patients}

    def check_links(
        self,
        changes: Iterable[Interaction],
        fetch: Callable[[Interaction], HTTPResponse],
    ) -> ScriptRecord:
        """
        Refuse to refer to a Binary that does not say that it is the patient's.

        Whoever may read what a resource of the patient's refers to could otherwise
        write that it refers to any.

        Returns:
            A record in which bodies may refer to what their resource refers to already.
        """
        known, ids = set(self.known), set[str]()
        for asked in changes:
            texts = {self._shorten(text) for text in iter_values(asked.body)}
            names = {text for text in texts if _PATIENT.search(text)} - self.own
            kept = set[str]()
            if asked.name == "update" and (names or any(map(_BINARY.fullmatch, texts))):
                # Not all its texts: they can be moved to where they are links.
                kept = {self._shorten(link) for link in _read_links(asked, fetch)}
            known |= names & kept
            found = map(_BINARY.fullmatch, texts - kept)
            ids.update(binary[1] for binary in found if binary is not None)
        if len(ids) > _MAX_BINARIES:
            raise FHIRRequestError(
                f"A request may refer to at most {_MAX_BINARIES} Binaries."
            )
        for binary_id in sorted(ids):
            binary = process_read_response(
                fetch(build_read("Binary", binary_id)),
                resource_type="Binary",
                id=binary_id,
            )
            record_check(binary, self, "r")
        return replace(self, known=frozenset(known))

    def _shorten(self, text: object) -> str:
        """A text as a reference below the base; empty if it is no text."""
        text = text.lstrip() if isinstance(text, str) else ""
        return text.removeprefix(f"{self.base_url}/")


class _Names:
    """
    Looks for the names of other patients in a resource of one type.

    Args:
        listed: elements that may have them.
        known: references that are none, in several collections, as a server may send
            any number of them.
    """

    def __init__(
        self, kind: str, listed: Collection[str], *known: Collection[str]
    ) -> None:
        self._kind = kind
        self._listed = listed
        self._known = known
        self._referring = get_compartment(kind).referring

    def check(self, value: Any, path: str) -> None:
        if isinstance(value, list):
            for item in value:
                self.check(item, path)
        elif isinstance(value, str):
            is_uri = path.rpartition(".")[2] in _URIS and _PATIENT_URI.fullmatch(value)
            is_text = path in self._referring and _PATIENT.search(value)
            if (is_uri or is_text) and not self._is_known(value):
                _refuse(f"{self._kind}.{path} names another patient.")
        elif isinstance(value, Mapping):
            if path not in self._listed:
                self._check_reference(value, path)
            for name, item in value.items():
                if name not in _HELD:
                    self.check(item, f"{path}.{name}" if path else name)

    def _is_known(self, text: str) -> bool:
        return any(read_reference(text) in known for known in self._known)

    def _check_reference(self, value: Mapping[str, Any], path: str) -> None:
        where, text = f"{self._kind}.{path}", value.get("reference")
        may_refer = path in self._referring or path.rpartition(".")[2] in _REFERRING
        if text is None or isinstance(text, Mapping):
            is_patient = value.get("type", "Patient") == "Patient"
            if "identifier" in value and may_refer and is_patient:
                _refuse(f"{where} uses an identifier instead of a reference.")
        elif not isinstance(text, str):
            _refuse(f"{where} is not a reference.")
        elif not self._is_known(text):
            is_patient = _PATIENT.search(text) or value.get("type") == "Patient"
            if is_patient or (may_refer and text.strip().lower().startswith("urn:")):
                _refuse(f"{where} names another patient.")


def _read_links(
    asked: Interaction, fetch: Callable[[Interaction], HTTPResponse]
) -> Iterator[str]:
    """What the resource that is updated refers to, if it is there."""
    if asked.id:
        answer = fetch(build_read(asked.resource_type, asked.id))
        if answer.status_code == 200:
            yield from iter_links(
                process_read_response(
                    answer, resource_type=asked.resource_type, id=asked.id
                )
            )


def iter_links(value: Any) -> Iterator[str]:
    """What *value* refers to, and no other text: patients write messages, too."""
    for item in iter_values(value):
        if isinstance(item, Mapping):
            links = (item.get(name) for name in ("reference", "url"))
            yield from (link for link in links if isinstance(link, str))


def _refuse(reason: str) -> NoReturn:
    raise ForeignPatientError(reason)
