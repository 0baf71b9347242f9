"""Sign-out at the server too, where it is set."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("django_smart", "0004_keys_and_services"),
    ]

    operations = [
        migrations.AddField(
            model_name="fhirserver",
            name="rp_initiated_logout",
            field=models.BooleanField(
                default=False,
                help_text=(
                    "Sign-out sends the browser to the server's end_session_endpoint."
                ),
                verbose_name="sign out there too",
            ),
        ),
    ]
