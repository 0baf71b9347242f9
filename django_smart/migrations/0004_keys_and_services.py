"""One active and one next key of an algorithm, and grants of backend services."""

from __future__ import annotations

from typing import Any

import django_smart.fields
from django.conf import settings
from django.db import migrations, models


def _fill_slots(apps: Any, schema_editor: Any) -> None:
    """Keys that sign already take their slot; of several the newest goes on."""
    keys = apps.get_model("django_smart", "SigningKey").objects
    for status in ("next", "active"):
        taken: set[str] = set()
        for key in keys.filter(status=status).order_by("-created_at", "-pk"):
            if key.algorithm in taken:
                keys.filter(pk=key.pk).update(status="retired")
                continue
            taken.add(key.algorithm)
            slot = django_smart.fields.digest(key.algorithm, status)
            keys.filter(pk=key.pk).update(slot=slot)


class Migration(migrations.Migration):
    dependencies = [
        ("django_smart", "0003_brands"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AddField(
            model_name="signingkey",
            name="slot",
            field=django_smart.fields.DigestField(
                editable=False,
                max_length=64,
                null=True,
                sources=("algorithm", "_slot"),
                verbose_name="slot",
            ),
        ),
        migrations.AddField(
            model_name="tokengrant",
            name="kind",
            field=models.CharField(
                choices=[
                    ("authorization_code", "launch"),
                    ("client_credentials", "backend service"),
                ],
                default="authorization_code",
                max_length=30,
                verbose_name="kind",
            ),
        ),
        migrations.AddField(
            model_name="tokengrant",
            name="service_slot",
            field=django_smart.fields.DigestField(
                editable=False,
                max_length=64,
                null=True,
                sources=("_service_id", "scope_asked"),
                verbose_name="service slot",
            ),
        ),
        migrations.AlterField(
            model_name="signingkey",
            name="private_key",
            field=django_smart.fields.EncryptedTextField(
                blank=True, verbose_name="private key"
            ),
        ),
        migrations.RunPython(_fill_slots, migrations.RunPython.noop),
        migrations.AddConstraint(
            model_name="signingkey",
            constraint=models.UniqueConstraint(
                fields=("slot",), name="django_smart_key_slot"
            ),
        ),
        migrations.AddConstraint(
            model_name="tokengrant",
            constraint=models.UniqueConstraint(
                fields=("service_slot",), name="django_smart_grant_service_slot"
            ),
        ),
    ]
