"""How far each record has been read, and copies of its resources."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Self

from django.conf import settings
from django.db import connections, models, router
from django.db.models import Count, Min, Q
from django.db.models.functions import Coalesce
from django.utils.translation import gettext_lazy as _

from django_smart.fhir.json import load_json
from django_smart.fields import DigestField, EncryptedTextField, digest
from django_smart.models import FHIRServer, TokenGrant
from django_smart.models.clock import DatabaseNow

__all__ = ["StoredResource", "SyncRun", "SyncedResource", "SyncedType"]

# A run that stored nothing for so long was killed: longer than a request may take with
# the pauses that the EHR asks for.
_LEASE = timedelta(minutes=5)


class SyncRunQuerySet(models.QuerySet["SyncRun"]):
    """Decide which process reads a record."""

    def free(self) -> Self:
        """Return runs that no process works on."""
        return self.filter(Q(owner="") | Q(busy_until__lte=DatabaseNow()))

    def take(self, pk: int, owner: str) -> bool:
        """Return whether the run is the caller's now; one conditional UPDATE."""
        values = {"owner": owner, "is_finished": False}
        rows = self.free().filter(pk=pk)
        return rows.update(**values, busy_until=DatabaseNow(_LEASE)) == 1

    def hold(self, pk: int, owner: str) -> bool:
        """Return whether the run is still the caller's, and let it be so longer."""
        rows = self.filter(pk=pk, owner=owner)
        return rows.update(busy_until=DatabaseNow(_LEASE)) == 1

    def release(self, run: SyncRun, owner: str, error: str, seconds: float) -> None:
        """Let the run continue after *seconds*, or when a process asks for it."""
        run.last_error = error
        until = DatabaseNow(timedelta(seconds=seconds))
        self.filter(pk=run.pk, owner=owner).update(
            owner="", busy_until=until, last_error=error
        )

    def find_latest(self, grant: TokenGrant) -> SyncRun | None:
        """Return the run of a grant's record; of several sinks, the one used last."""
        runs = self.filter(**_get_record(grant))
        return runs.order_by("started_at").last()

    def summarize(self) -> Iterable[Mapping[str, Any]]:
        """
        Return for each server how many runs are finished, being read or waiting.

        ``oldest`` is when the record that is furthest behind was last read to its end,
        or when its first run began.
        """
        return self.values("server_id").annotate(
            finished=Count("pk", filter=Q(is_finished=True)),
            reading=Count("pk", filter=Q(is_finished=False) & ~Q(owner="")),
            waiting=Count("pk", filter=Q(is_finished=False, owner="")),
            oldest=Min(Coalesce("finished_at", "started_at")),
        )

    def without_grant(self) -> Self:
        """Return runs of records to which no grant is left, not even a lost one."""
        grants = TokenGrant.objects.endable().filter(
            user_id=models.OuterRef("user_id"),
            registration__server_id=models.OuterRef("server_id"),
            patient_id=models.OuterRef("patient_id"),
        )
        return self.exclude(models.Exists(grants))


def _get_record(grant: TokenGrant) -> dict[str, Any]:
    """Return whose record a grant reads."""
    return {
        "user_id": grant.user_id,
        "server_id": grant.registration.server_id,
        "patient_id": grant.patient_id,
    }


class SyncRun(models.Model):
    """
    The latest run that read one patient's record into one sink.

    It belongs to the user, the server and the patient, so a new grant of the same
    connection continues where the old one ended.

    Attributes:
        is_finished: whether every type was read, refused, or could only be read in
            part. False from the moment a process takes the run until it has.
        owner: the process that reads it; empty if none does.
        busy_until: when another process may take it from *owner*; without one, when the
            task may continue it.
    """

    key = DigestField(sources=("record_name",), unique=True)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        # So that the next tick has the sink forget the record, wherever it is.
        models.SET_NULL,
        null=True,
        related_name="+",
        verbose_name=_("user"),
    )
    server = models.ForeignKey(
        FHIRServer, models.CASCADE, related_name="+", verbose_name=_("server")
    )
    patient_id = models.CharField(_("patient"), max_length=64)
    sink = models.CharField(_("sink"), max_length=200)
    number = models.PositiveIntegerField(_("run"), default=0)
    is_full = models.BooleanField(_("reads everything"), default=True)
    started_at = models.DateTimeField(_("started"), null=True)
    finished_at = models.DateTimeField(_("finished"), null=True)
    is_finished = models.BooleanField(_("has come to its end"), default=False)
    full_at = models.DateTimeField(_("read completely"), null=True)
    last_error = models.CharField(_("last error"), max_length=64, blank=True)
    position = models.TextField(_("position in the sink"), blank=True)
    owner = models.CharField(_("process"), max_length=36, blank=True)
    busy_until = models.DateTimeField(_("busy until"), null=True)

    objects = SyncRunQuerySet.as_manager()

    class Meta:
        verbose_name = _("run")
        verbose_name_plural = _("runs")

    def __str__(self) -> str:
        return f"{self.server} {self.pk}"

    @classmethod
    def get_for(cls, grant: TokenGrant, sink: str) -> SyncRun:
        """Return the run of a grant's record, made if it is the first."""
        values = {**_get_record(grant), "sink": sink}
        key = digest(cls(**values).record_name)
        return cls.objects.get_or_create(key=key, defaults=values)[0]

    @property
    def record_name(self) -> str:
        """Whose record is read into which sink."""
        return f"{self.user_id} {self.server_id} {self.patient_id} {self.sink}"

    @property
    def is_complete(self) -> bool:
        """Whether the sink has everything that the EHR lets this grant read."""
        return self.is_finished and all(
            state == SyncedType.State.COMPLETE for state in self.states.values()
        )

    @property
    def states(self) -> dict[str, str]:
        """
        By resource type, the state of its worst search.

        A category that the server does not know is no lack if others were read.
        """
        found: dict[str, list[str]] = {}
        # all(), so that a list may prefetch them.
        for row in sorted(self.types.all(), key=lambda row: row.pk):
            found.setdefault(row.resource_type, []).append(row.state)
        return {name: _combine(states) for name, states in found.items()}

    def in_state(self, state: str) -> list[str]:
        """Return the resource types in *state*."""
        return [name for name, found in self.states.items() if found == state]

    @property
    def complete(self) -> list[str]:
        """The resource types that were read completely."""
        return self.in_state(SyncedType.State.COMPLETE)

    @property
    def refused(self) -> list[str]:
        """The resource types that the EHR does not let this grant read."""
        return self.in_state(SyncedType.State.REFUSED)

    def count(self) -> dict[str, int]:
        """Return the number of resources that were delivered, by type."""
        rows = self.copies if self.copies.exists() else self.resources
        types = rows.exclude(version="").values_list("resource_type")
        return dict(types.annotate(Count("pk")).order_by("resource_type"))


def _combine(states: list[str]) -> str:
    state = SyncedType.State
    for each in (state.WAITING, state.PARTIAL, state.COMPLETE):
        if each in states:
            return each
    return state.REFUSED


class SyncedType(models.Model):
    """One search of a run: a resource type, perhaps one category of it."""

    class State(models.TextChoices):
        """How far it came in this run."""

        WAITING = "waiting", _("waiting")
        COMPLETE = "complete", _("complete")
        PARTIAL = "partial", _("partial")
        REFUSED = "refused", _("refused")

    run = models.ForeignKey(
        SyncRun,
        models.CASCADE,
        # The constraint below has an index that begins with it.
        db_index=False,
        related_name="types",
        verbose_name=_("run"),
    )
    resource_type = models.CharField(_("resource type"), max_length=64)
    query = models.CharField(_("query"), max_length=200, blank=True)
    state = models.CharField(
        _("state"), max_length=10, choices=State, default=State.WAITING
    )
    reason = models.CharField(_("reason"), max_length=64, blank=True)
    since = models.CharField(_("changed since"), max_length=40, blank=True)
    newest = models.CharField(_("newest change"), max_length=40, blank=True)
    next_url = EncryptedTextField(_("next page"), blank=True)
    started_at = models.DateTimeField(_("started"), null=True)
    total = models.PositiveIntegerField(_("number of matches"), default=0)
    received = models.PositiveIntegerField(_("of which received"), default=0)
    foreign_count = models.PositiveIntegerField(_("of other patients"), default=0)

    class Meta:
        verbose_name = _("type in a run")
        verbose_name_plural = _("types in a run")
        constraints = (
            models.UniqueConstraint(
                fields=["run", "resource_type", "query"],
                name="smart_records_type",
            ),
        )

    def __str__(self) -> str:
        return f"{self.resource_type}?{self.query}".removesuffix("?")


def get_resource_key(run: SyncRun, resource_type: str, resource_id: str) -> str:
    """Return the ``key`` of a resource's row."""
    return digest(str(run.pk), resource_type, resource_id)


class ResourceRow(models.Model):
    """
    A resource of a record: the version that the sink has.

    Attributes:
        key: contains the run, since a database without statistics would rather read
            all rows of a run than look up each key in it.
        version: digest of its version.
        seen: number of the run that last met it.
    """

    key = DigestField(sources=("run_name", "resource_type", "resource_id"))
    resource_type = models.CharField(_("resource type"), max_length=64)
    resource_id = models.CharField(_("id"), max_length=64)
    version = models.CharField(_("version"), max_length=64, blank=True)
    seen = models.PositiveIntegerField(_("seen in run"), default=0)
    run_id: int

    class Meta:
        abstract = True
        constraints = (
            # Without the second index that unique=True has in PostgreSQL.
            models.UniqueConstraint(fields=["key"], name="%(class)s_key"),
        )

    def __str__(self) -> str:
        return f"{self.resource_type} {self.pk}"

    @classmethod
    def put(cls, rows: Sequence[Self]) -> None:
        """Insert *rows*, or update those that are there, in one statement."""
        fields = {field.name for field in cls._meta.concrete_fields}
        fields -= {"id", "run", "key", "resource_type", "resource_id"}
        features = connections[router.db_for_write(cls)].features
        # MariaDB takes any unique column.
        has_target = features.supports_update_conflicts_with_target
        cls._default_manager.bulk_create(
            rows,
            update_conflicts=True,
            update_fields=sorted(fields),
            unique_fields=["key"] if has_target else None,
        )

    @property
    def run_name(self) -> str:
        """Which run it belongs to, as text."""
        return str(self.run_id)


class SyncedResource(ResourceRow):
    """
    A resource that a sink without rows has, or one that others refer to.

    Those that were not read yet have no version.
    """

    run = models.ForeignKey(
        SyncRun, models.CASCADE, related_name="resources", verbose_name=_("run")
    )

    class Meta(ResourceRow.Meta):
        verbose_name = _("resource of a record")
        verbose_name_plural = _("resources of a record")


class StoredResource(ResourceRow):
    """
    A copy of one resource, which :class:`~.sinks.ModelSink` keeps.

    Attributes:
        content: the resource as JSON, with the digits of its numbers; empty if it is
            encrypted.
        encrypted_content: the same, encrypted.
    """

    run = models.ForeignKey(
        SyncRun,
        models.CASCADE,
        # The index below begins with it.
        db_index=False,
        related_name="copies",
        verbose_name=_("run"),
    )
    last_updated = models.CharField(_("last updated"), max_length=40, blank=True)
    content = models.TextField(_("content"), blank=True)
    encrypted_content = EncryptedTextField(_("content"), blank=True)

    class Meta(ResourceRow.Meta):
        verbose_name = _("copy of a resource")
        verbose_name_plural = _("copies of resources")
        indexes = (
            models.Index(fields=["run", "resource_type"], name="smart_records_by_type"),
        )

    @property
    def resource(self) -> dict[str, Any]:
        """The resource, as :meth:`FHIRClient.read` returns it."""
        loaded: dict[str, Any] = load_json(self.content or self.encrypted_content)
        return loaded
