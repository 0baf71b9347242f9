"""Launches in a frame of the EHR's."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("django_smart", "0009_refresh_engine"),
    ]

    operations = [
        migrations.AddField(
            model_name="fhirserver",
            name="authorize_in_frame",
            field=models.BooleanField(
                default=True,
                help_text="If not, launches in a frame go on in a new window.",
                verbose_name="authorization page may be in a frame",
            ),
        ),
        migrations.AddField(
            model_name="launch",
            name="is_framed",
            field=models.BooleanField(
                default=False, editable=False, verbose_name="in a frame"
            ),
        ),
    ]
