"""User-access brands, and the words that servers and brands are found by."""

from __future__ import annotations

from typing import Any

import django.db.models.deletion
import django_smart.fields
import django_smart.models.search_words
from django.db import migrations, models


def _fill_search_text(apps: Any, schema_editor: Any) -> None:
    """Servers that are there already are found by name, too."""
    for server in apps.get_model("django_smart", "FHIRServer").objects.all():
        server.save(update_fields=["search_text"])


class Migration(migrations.Migration):
    dependencies = [
        ("django_smart", "0002_discovery_lifetimes"),
    ]

    operations = [
        migrations.AddField(
            model_name="fhirserver",
            name="search_text",
            field=django_smart.models.search_words.SearchTextField(
                default="",
                editable=False,
                source="name",
                verbose_name="words of the name",
            ),
        ),
        migrations.CreateModel(
            name="BrandBundle",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True,
                        primary_key=True,
                        serialize=False,
                        verbose_name="ID",
                    ),
                ),
                (
                    "location",
                    models.CharField(
                        help_text="URL, or the name given to a file.",
                        max_length=1000,
                        verbose_name="location",
                    ),
                ),
                (
                    "location_digest",
                    django_smart.fields.DigestField(
                        editable=False,
                        max_length=64,
                        sources=("location",),
                        verbose_name="digest of the location",
                    ),
                ),
                (
                    "etag",
                    models.CharField(
                        blank=True, default="", max_length=500, verbose_name="ETag"
                    ),
                ),
                (
                    "content_digest",
                    models.CharField(
                        blank=True,
                        default="",
                        editable=False,
                        max_length=64,
                        verbose_name="digest of the content",
                    ),
                ),
                (
                    "timestamp",
                    models.DateTimeField(
                        blank=True, null=True, verbose_name="last change"
                    ),
                ),
                (
                    "imported_at",
                    models.DateTimeField(
                        blank=True, null=True, verbose_name="imported at"
                    ),
                ),
                (
                    "server",
                    models.ForeignKey(
                        blank=True,
                        help_text="Server whose configuration names this bundle.",
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="brand_bundles",
                        to="django_smart.fhirserver",
                        verbose_name="linked from",
                    ),
                ),
            ],
            options={
                "verbose_name": "brand bundle",
                "verbose_name_plural": "brand bundles",
                "ordering": ("location", "pk"),
            },
        ),
        migrations.CreateModel(
            name="Brand",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True,
                        primary_key=True,
                        serialize=False,
                        verbose_name="ID",
                    ),
                ),
                (
                    "full_url",
                    models.CharField(max_length=1000, verbose_name="full URL"),
                ),
                (
                    "full_url_digest",
                    django_smart.fields.DigestField(
                        editable=False,
                        max_length=64,
                        sources=("full_url",),
                        verbose_name="digest of the full URL",
                    ),
                ),
                (
                    "reference",
                    models.CharField(
                        blank=True,
                        default="",
                        max_length=130,
                        verbose_name="type and id",
                    ),
                ),
                (
                    "reference_digest",
                    django_smart.fields.DigestField(
                        editable=False,
                        max_length=64,
                        sources=("reference",),
                        verbose_name="digest of type and id",
                    ),
                ),
                (
                    "merge_digest",
                    models.CharField(
                        db_index=True,
                        editable=False,
                        max_length=64,
                        verbose_name="digest of the identifier",
                    ),
                ),
                ("name", models.CharField(max_length=300, verbose_name="name")),
                (
                    "name_key",
                    models.BigIntegerField(
                        editable=False, verbose_name="beginning of the name"
                    ),
                ),
                (
                    "sort_name",
                    models.CharField(
                        editable=False, max_length=100, verbose_name="folded name"
                    ),
                ),
                (
                    "aliases",
                    models.JSONField(blank=True, default=list, verbose_name="aliases"),
                ),
                (
                    "places",
                    models.JSONField(blank=True, default=list, verbose_name="places"),
                ),
                (
                    "categories",
                    models.CharField(
                        blank=True,
                        default="",
                        max_length=200,
                        verbose_name="categories",
                    ),
                ),
                (
                    "website",
                    models.CharField(
                        blank=True, default="", max_length=1000, verbose_name="website"
                    ),
                ),
                ("logo", models.TextField(blank=True, default="", verbose_name="logo")),
                (
                    "logo_license",
                    models.CharField(
                        blank=True,
                        default="",
                        max_length=1000,
                        verbose_name="licence of the logo",
                    ),
                ),
                (
                    "brand_bundle",
                    models.CharField(
                        blank=True,
                        default="",
                        max_length=1000,
                        verbose_name="own brand bundle",
                    ),
                ),
                (
                    "portals",
                    models.JSONField(blank=True, default=list, verbose_name="portals"),
                ),
                (
                    "endpoint_references",
                    models.JSONField(
                        blank=True,
                        default=list,
                        editable=False,
                        verbose_name="references to endpoints",
                    ),
                ),
                (
                    "part_of",
                    models.CharField(
                        blank=True, default="", max_length=1000, verbose_name="part of"
                    ),
                ),
                (
                    "content_digest",
                    models.CharField(
                        editable=False,
                        max_length=64,
                        verbose_name="digest of the content",
                    ),
                ),
                (
                    "card",
                    models.ForeignKey(
                        blank=True,
                        editable=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="merged",
                        to="django_smart.brand",
                        verbose_name="shown as",
                    ),
                ),
                (
                    "bundle",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="brands",
                        to="django_smart.brandbundle",
                        verbose_name="brand bundle",
                    ),
                ),
            ],
            options={
                "verbose_name": "brand",
                "verbose_name_plural": "brands",
                "ordering": ("sort_name", "pk"),
            },
        ),
        migrations.CreateModel(
            name="BrandEndpoint",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True,
                        primary_key=True,
                        serialize=False,
                        verbose_name="ID",
                    ),
                ),
                (
                    "full_url",
                    models.CharField(max_length=1000, verbose_name="full URL"),
                ),
                (
                    "full_url_digest",
                    django_smart.fields.DigestField(
                        editable=False,
                        max_length=64,
                        sources=("full_url",),
                        verbose_name="digest of the full URL",
                    ),
                ),
                (
                    "reference",
                    models.CharField(
                        blank=True,
                        default="",
                        max_length=130,
                        verbose_name="type and id",
                    ),
                ),
                (
                    "reference_digest",
                    django_smart.fields.DigestField(
                        editable=False,
                        max_length=64,
                        sources=("reference",),
                        verbose_name="digest of type and id",
                    ),
                ),
                (
                    "address",
                    models.CharField(max_length=1000, verbose_name="FHIR base URL"),
                ),
                (
                    "address_digest",
                    django_smart.fields.DigestField(
                        editable=False,
                        max_length=64,
                        sources=("normalized_address",),
                        verbose_name="digest of the base URL",
                    ),
                ),
                (
                    "name",
                    models.CharField(
                        blank=True, default="", max_length=300, verbose_name="name"
                    ),
                ),
                (
                    "versions",
                    models.CharField(
                        blank=True,
                        default="",
                        max_length=300,
                        verbose_name="FHIR versions",
                    ),
                ),
                ("is_r4", models.BooleanField(default=True, verbose_name="FHIR R4")),
                (
                    "developer_url",
                    models.CharField(
                        blank=True,
                        default="",
                        max_length=1000,
                        verbose_name="page for developers",
                    ),
                ),
                (
                    "content_digest",
                    models.CharField(
                        editable=False,
                        max_length=64,
                        verbose_name="digest of the content",
                    ),
                ),
                (
                    "bundle",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="endpoints",
                        to="django_smart.brandbundle",
                        verbose_name="brand bundle",
                    ),
                ),
            ],
            options={
                "verbose_name": "brand endpoint",
                "verbose_name_plural": "brand endpoints",
                "ordering": ("pk",),
            },
        ),
        migrations.CreateModel(
            name="BrandAccess",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True,
                        primary_key=True,
                        serialize=False,
                        verbose_name="ID",
                    ),
                ),
                ("position", models.PositiveIntegerField(verbose_name="position")),
                (
                    "portal_name",
                    models.CharField(
                        blank=True, default="", max_length=300, verbose_name="portal"
                    ),
                ),
                (
                    "brand",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="accesses",
                        to="django_smart.brand",
                        verbose_name="brand",
                    ),
                ),
                (
                    "endpoint",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="accesses",
                        to="django_smart.brandendpoint",
                        verbose_name="endpoint",
                    ),
                ),
            ],
            options={
                "verbose_name": "brand access",
                "verbose_name_plural": "brand accesses",
                "ordering": ("brand", "position"),
            },
        ),
        migrations.CreateModel(
            name="BrandWord",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True,
                        primary_key=True,
                        serialize=False,
                        verbose_name="ID",
                    ),
                ),
                ("key", models.BigIntegerField(verbose_name="beginning as a number")),
                ("word", models.CharField(max_length=40, verbose_name="word")),
                (
                    "brand",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="words",
                        to="django_smart.brand",
                        verbose_name="brand",
                    ),
                ),
            ],
            options={
                "verbose_name": "brand word",
                "verbose_name_plural": "brand words",
                "ordering": ("brand", "pk"),
            },
        ),
        migrations.AddConstraint(
            model_name="brandbundle",
            constraint=models.UniqueConstraint(
                fields=("location_digest",), name="django_smart_brandbundle_location"
            ),
        ),
        migrations.AddIndex(
            model_name="brand",
            index=models.Index(
                fields=["bundle", "reference_digest"], name="django_smart_brand_ref"
            ),
        ),
        migrations.AddIndex(
            model_name="brand",
            index=models.Index(fields=["sort_name"], name="django_smart_brand_name"),
        ),
        migrations.AddConstraint(
            model_name="brand",
            constraint=models.UniqueConstraint(
                fields=("bundle", "full_url_digest"), name="django_smart_brand_url"
            ),
        ),
        migrations.AddIndex(
            model_name="brandendpoint",
            index=models.Index(
                fields=["bundle", "reference_digest"], name="django_smart_endpoint_ref"
            ),
        ),
        migrations.AddIndex(
            model_name="brandendpoint",
            index=models.Index(
                fields=["address_digest"], name="django_smart_endpoint_addr"
            ),
        ),
        migrations.AddConstraint(
            model_name="brandendpoint",
            constraint=models.UniqueConstraint(
                fields=("bundle", "full_url_digest"),
                name="django_smart_brandendpoint_url",
            ),
        ),
        migrations.AddConstraint(
            model_name="brandaccess",
            constraint=models.UniqueConstraint(
                fields=("brand", "endpoint"), name="django_smart_brandaccess_pair"
            ),
        ),
        migrations.AddIndex(
            model_name="brandword",
            index=models.Index(fields=["key", "brand"], name="django_smart_word_key"),
        ),
        migrations.AddIndex(
            model_name="brandword",
            index=models.Index(fields=["brand", "key"], name="django_smart_word_brand"),
        ),
        migrations.RunPython(_fill_search_text, migrations.RunPython.noop),
    ]
