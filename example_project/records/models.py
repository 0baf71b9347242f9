"""Copies of FHIR resources, and how far each type has been read."""

from __future__ import annotations

from django.conf import settings
from django.db import models

__all__ = ["Copy", "Progress"]


class _OfOneConnection(models.Model):
    """
    Whose record it is, and where it was read.

    A new connection to the same record goes on where the old one ended: grants change,
    and are not referred to.
    """

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    server = models.SlugField(max_length=100)
    patient_id = models.CharField(max_length=64)
    resource_type = models.CharField(max_length=64)

    class Meta:
        abstract = True


class Copy(_OfOneConnection):
    """One resource, as it was read last."""

    resource_id = models.CharField(max_length=64)
    content = models.JSONField()

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=[
                    *("owner", "server", "patient_id", "resource_type", "resource_id")
                ],
                name="records_copy_of_resource",
            ),
        )

    def __str__(self) -> str:
        return f"{self.resource_type} {self.pk}"


class Progress(_OfOneConnection):
    """How far one type of resource has been read."""

    #: ``meta.lastUpdated`` of the newest resource, exactly as the server writes it.
    changed_at = models.CharField(max_length=40, blank=True)
    filled_at = models.DateTimeField(null=True)

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=["owner", "server", "patient_id", "resource_type"],
                name="records_progress_of_type",
            ),
        )

    def __str__(self) -> str:
        return f"{self.resource_type} {self.pk}"
