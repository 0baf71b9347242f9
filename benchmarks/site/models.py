"""
What a relying party keeps: at least whose account is whose.

With launches, also its hospitals, and for each launch a row with the tokens.
"""

from __future__ import annotations

from typing import ClassVar

from django.conf import settings
from django.db import models

__all__ = ["Account", "ChartLaunch", "Hospital"]


class Account(models.Model):
    """(issuer, subject) of a user."""

    issuer = models.CharField(max_length=200)
    subject = models.CharField(max_length=200)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE)

    objects: ClassVar[models.Manager[Account]] = models.Manager()

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=["issuer", "subject"], name="bench_account_subject"
            ),
        )

    def __str__(self) -> str:
        return f"account #{self.pk}"


class Hospital(models.Model):
    """An EHR where this site is registered."""

    slug = models.SlugField(unique=True)
    base_url = models.CharField(max_length=200, unique=True)
    client_id = models.CharField(max_length=200)
    client_secret = models.TextField()  # encrypted

    objects: ClassVar[models.Manager[Hospital]] = models.Manager()

    def __str__(self) -> str:
        return self.slug


class ChartLaunch(models.Model):
    """One launch, from its request to the tokens, which are encrypted."""

    hospital = models.ForeignKey(Hospital, models.CASCADE)
    state_digest = models.CharField(max_length=64, unique=True)
    started_at = models.DateTimeField(auto_now_add=True)
    consumed_at = models.DateTimeField(null=True)
    account = models.ForeignKey(Account, models.CASCADE, null=True)
    access_token = models.TextField(default="")
    refresh_token = models.TextField(default="")
    token_expires_at = models.DateTimeField(null=True)
    scope = models.TextField(default="")
    patient_id = models.CharField(max_length=64, default="")

    objects: ClassVar[models.Manager[ChartLaunch]] = models.Manager()

    def __str__(self) -> str:
        return f"launch #{self.pk}"
