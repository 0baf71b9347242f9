"""
A site with django-allauth, as the page on it says.

In a process of its own: allauth's tables are not among those of the tests' site.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import django
from django.conf import settings

from tests import settings as base
from tests.docs.blocks import read_blocks

_PAGE = "how-to/users-and-sign-in.rst"
_ALLAUTH = {
    "INSTALLED_APPS": ["allauth", "allauth.account"],
    "MIDDLEWARE": ["allauth.account.middleware.AccountMiddleware"],
}


def main() -> None:
    """Sign in by allauth, connect, come in by the EHR, and sign out by allauth."""
    (backends,) = read_blocks(_PAGE, "Beside django-allauth")
    _, conf, *_ = read_blocks("how-to/add-to-a-site.rst")
    (urls,) = (
        each
        for each in read_blocks("how-to/add-to-a-site.rst", "URLs")
        if each.language == "python"
    )
    values: dict[str, Any] = {
        name: value for name, value in vars(base).items() if name.isupper()
    }
    exec(conf.code, values)
    exec(backends.code, values)
    for name, added in _ALLAUTH.items():
        values[name] = [*values[name], *added]
    module: Any = ModuleType("clinic_urls")
    sys.modules["clinic_urls"] = module
    settings.configure(
        **{name: value for name, value in values.items() if name.isupper()}
        | {
            "ROOT_URLCONF": "clinic_urls",
            "SMART_LAUNCH_REDIRECT_URL": "django_smart:connections",
            "DATABASES": {
                "default": {
                    "ENGINE": "django.db.backends.sqlite3",
                    "NAME": ":memory:",
                }
            },
        }
    )
    django.setup()
    exec(urls.code, module.__dict__)
    accounts = module.path("accounts/", module.include("allauth.urls"))
    module.urlpatterns.append(accounts)
    visit()


def visit() -> None:
    """What people do there."""
    from django.contrib.auth.models import User
    from django.core.management import call_command

    from django_smart import transport
    from django_smart.contrib.doctor.launch import try_launch
    from django_smart.models import Launch
    from django_smart.testing import EHRSimulator
    from tests import ehr as at

    call_command("check", fail_level="WARNING")
    call_command("migrate", verbosity=0)
    found = list(try_launch())
    assert found == [], found
    rosa = User.objects.create_user("rosa", password="a password of no value")
    at.make_registration()
    ehr = EHRSimulator(base_url=at.BASE_URL)
    ehr.register_client(
        at.CLIENT_ID, client_secret=at.CLIENT_SECRET, redirect_uris=[at.REDIRECT_URI]
    )
    with transport.mounted("https://ehr.example.org", ehr.adapter()):
        browser = at.make_browser()
        form = {"login": "rosa", "password": "a password of no value"}
        assert browser.post("/accounts/login/", form).status_code == 302
        backend = browser.session["_auth_user_backend"]
        assert not backend.startswith("django_smart.")
        person = next(name for name in ehr.users if name.startswith("Patient/"))
        connected = at.connect(browser, ehr, user=person)
        assert connected.user == rosa
        assert browser.session["_auth_user_backend"] == backend

        other = at.make_browser()
        answer = other.get("/smart/login/", {"server": "harbour"})
        held = at.get_callback(other, ehr.authorize(answer["Location"], user=person))
        assert held["Location"].startswith("/smart/decide/")
        signed_in = other.post(f"/accounts/login/?next={held['Location']}", form)
        again = at.get_launch(other.get(signed_in["Location"]))
        assert again.user == rosa
        assert other.session["_auth_user_backend"] == backend

        clinician = at.launch(at.make_browser(), ehr)
        assert clinician.user not in (None, rosa)

        assert other.post("/accounts/logout/").status_code == 302
        again.refresh_from_db()
        assert again.status == Launch.Status.ENDED
        connected.refresh_from_db()
        assert connected.status == Launch.Status.OPEN
    sys.stdout.write("all of it")


if __name__ == "__main__":
    main()
