"""For uvicorn."""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application

from benchmarks.site.stalls import Watched

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.settings")
application = Watched(get_asgi_application())
