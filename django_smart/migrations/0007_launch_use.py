"""When a launch was used last, for those that are left alone."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("django_smart", "0006_brand_cards"),
    ]

    operations = [
        migrations.AddField(
            model_name="launch",
            name="last_used_at",
            field=models.DateTimeField(
                blank=True, null=True, verbose_name="last used at"
            ),
        ),
    ]
