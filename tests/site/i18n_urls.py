"""The site's URLs in several languages."""

from __future__ import annotations

from django.conf.urls.i18n import i18n_patterns

from tests.site.urls import urlpatterns as site
from tests.urls import urlpatterns as package

urlpatterns = [*package, *i18n_patterns(*site[len(package) :])]
