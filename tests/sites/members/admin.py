"""The admin's form for users."""

from __future__ import annotations

from django.contrib import admin

from tests.sites.members.models import Member


@admin.register(Member)
class MemberAdmin(admin.ModelAdmin):
    """With the fields that a person fills in."""

    fields = ("email", "name")
