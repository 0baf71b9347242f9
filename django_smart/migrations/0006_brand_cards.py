"""Words and accesses know the card of their brand: a search needs no detour."""

from __future__ import annotations

from typing import Any

import django.db.models.deletion
from django.db import migrations, models


def _fill_cards(apps: Any, schema_editor: Any) -> None:
    brands = apps.get_model("django_smart", "Brand").objects
    own = brands.filter(pk=models.OuterRef("brand")).values("card")[:1]
    for name in ("BrandWord", "BrandAccess"):
        rows = apps.get_model("django_smart", name).objects.all()
        rows.update(card=models.Subquery(own))


class Migration(migrations.Migration):
    dependencies = [
        ("django_smart", "0005_rp_initiated_logout"),
    ]

    operations = [
        # MariaDB keeps an index on every foreign key: the new one comes first.
        migrations.AlterField(
            model_name="brandword",
            name="brand",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE,
                related_name="words",
                to="django_smart.brand",
                verbose_name="brand",
            ),
        ),
        migrations.RemoveIndex(
            model_name="brandword",
            name="django_smart_word_key",
        ),
        migrations.RemoveIndex(
            model_name="brandword",
            name="django_smart_word_brand",
        ),
        migrations.AddField(
            model_name="brandaccess",
            name="card",
            field=models.ForeignKey(
                editable=False,
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="+",
                to="django_smart.brand",
                verbose_name="shown as",
            ),
        ),
        migrations.AddField(
            model_name="brandword",
            name="card",
            field=models.ForeignKey(
                db_index=False,
                editable=False,
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="+",
                to="django_smart.brand",
                verbose_name="shown as",
            ),
        ),
        migrations.AddIndex(
            model_name="brandword",
            index=models.Index(fields=["key", "card"], name="django_smart_word_key"),
        ),
        migrations.AddIndex(
            model_name="brandword",
            index=models.Index(fields=["card", "key"], name="django_smart_word_card"),
        ),
        migrations.RunPython(_fill_cards, migrations.RunPython.noop),
    ]
