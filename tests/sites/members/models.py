"""The users."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib.auth.base_user import BaseUserManager
from django.contrib.auth.models import AbstractUser
from django.db import models


class MemberManager(BaseUserManager["Member"]):
    """Creates users who have an e-mail address instead of a username."""

    def create_user(
        self, email: str, password: str | None = None, **values: Any
    ) -> Member:
        """A new member."""
        member = self.model(email=self.normalize_email(email), **values)
        member.set_password(password)
        member.save(using=self._db)
        return member


class Member(AbstractUser):
    """A user with one name and no username; the inherited columns are removed."""

    name = models.CharField("name", blank=True, max_length=255)
    first_name = None  # type: ignore[assignment]
    last_name = None  # type: ignore[assignment]
    username = None  # type: ignore[assignment]
    email = models.EmailField("email address", unique=True)

    objects: ClassVar[MemberManager] = MemberManager()  # type: ignore[assignment]

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []
