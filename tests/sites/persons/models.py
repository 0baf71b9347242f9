"""The users."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.db import models


class PersonManager(BaseUserManager["Person"]):
    """As sites write it."""

    def create_user(
        self, email: str, password: str | None = None, **values: Any
    ) -> Person:
        """A new person."""
        person = self.model(email=self.normalize_email(email), **values)
        person.set_password(password)
        person.save(using=self._db)
        return person


class Person(AbstractBaseUser, PermissionsMixin):
    """Somebody, who cannot be deactivated: ``is_active`` is no column of theirs."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    email = models.CharField(max_length=100, unique=True)
    is_staff = models.BooleanField(default=False)

    # Not every site calls it "objects".
    people: ClassVar[PersonManager] = PersonManager()

    USERNAME_FIELD = "email"

    def __str__(self) -> str:
        return str(self.pk)
