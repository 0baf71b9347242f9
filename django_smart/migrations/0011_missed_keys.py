"""When a fetch of a server's keys did not bring the one that was looked for."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("django_smart", "0010_frames"),
    ]

    operations = [
        migrations.AddField(
            model_name="fhirserver",
            name="jwks_missed_at",
            field=models.DateTimeField(
                blank=True,
                editable=False,
                help_text="When it was last fetched for a key that was not there.",
                null=True,
                verbose_name="JWK Set lacked a key at",
            ),
        ),
    ]
