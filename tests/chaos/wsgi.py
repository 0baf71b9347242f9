"""The web processes of the deployment under chaos."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.chaos.settings")

application = get_wsgi_application()
