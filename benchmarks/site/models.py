"""What a relying party has to keep at least: whose account is whose."""

from __future__ import annotations

from typing import ClassVar

from django.conf import settings
from django.db import models

__all__ = ["Account"]


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
