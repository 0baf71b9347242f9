"""How long discovered documents may be kept, and when a server failed."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("django_smart", "0001_initial"),
    ]

    operations = [
        migrations.AddField(
            model_name="fhirserver",
            name="configuration_max_age",
            field=models.PositiveIntegerField(
                blank=True,
                editable=False,
                help_text="As the server says; empty if it does not.",
                null=True,
                verbose_name="seconds the configuration may be kept",
            ),
        ),
        migrations.AddField(
            model_name="fhirserver",
            name="discovery_failed_at",
            field=models.DateTimeField(
                blank=True,
                editable=False,
                help_text="Empty if the last attempt succeeded.",
                null=True,
                verbose_name="discovery failed at",
            ),
        ),
        migrations.AddField(
            model_name="fhirserver",
            name="jwks_max_age",
            field=models.PositiveIntegerField(
                blank=True,
                editable=False,
                help_text="As the server says; empty if it does not.",
                null=True,
                verbose_name="seconds the JWK Set may be kept",
            ),
        ),
    ]
