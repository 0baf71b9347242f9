"""What the refresh engine knows of servers, registrations and grants."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("django_smart", "0008_task_runs"),
    ]

    operations = [
        migrations.AddField(
            model_name="clientregistration",
            name="refresh_stopped_at",
            field=models.DateTimeField(
                blank=True,
                editable=False,
                help_text="The server refused our credentials; grants wait until they are mended.",
                null=True,
                verbose_name="refresh stopped at",
            ),
        ),
        migrations.AddField(
            model_name="fhirserver",
            name="last_refresh_at",
            field=models.DateTimeField(
                blank=True, editable=False, null=True, verbose_name="last refresh"
            ),
        ),
        migrations.AddField(
            model_name="fhirserver",
            name="last_refresh_error",
            field=models.CharField(
                blank=True,
                default="",
                editable=False,
                max_length=100,
                verbose_name="error of the last failed refresh",
            ),
        ),
        migrations.AddField(
            model_name="fhirserver",
            name="last_refresh_failure_at",
            field=models.DateTimeField(
                blank=True,
                editable=False,
                null=True,
                verbose_name="last failed refresh",
            ),
        ),
        migrations.AddField(
            model_name="fhirserver",
            name="refresh_failures",
            field=models.PositiveIntegerField(
                default=0, editable=False, verbose_name="failed refreshes in a row"
            ),
        ),
        migrations.AddField(
            model_name="fhirserver",
            name="refresh_paused_until",
            field=models.DateTimeField(
                blank=True,
                editable=False,
                help_text="After an outage, or as the server asked for.",
                null=True,
                verbose_name="refresh paused until",
            ),
        ),
        migrations.AddField(
            model_name="fhirserver",
            name="refresh_slot_at",
            field=models.DateTimeField(
                blank=True,
                editable=False,
                null=True,
                verbose_name="next free time for a request",
            ),
        ),
        migrations.AddField(
            model_name="tokengrant",
            name="claimed_until",
            field=models.DateTimeField(
                blank=True,
                editable=False,
                help_text="On its way to a worker.",
                null=True,
                verbose_name="claimed until",
            ),
        ),
        migrations.AddField(
            model_name="tokengrant",
            name="last_used_at",
            field=models.DateTimeField(
                blank=True,
                editable=False,
                help_text="To the day: it is written at most once a day.",
                null=True,
                verbose_name="last used at",
            ),
        ),
    ]
