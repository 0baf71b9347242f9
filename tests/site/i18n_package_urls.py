"""A site with everything under the prefix of a language, the package's URLs too."""

from __future__ import annotations

from django.conf.urls.i18n import i18n_patterns

from tests.urls import urlpatterns as package

urlpatterns = i18n_patterns(*package)
