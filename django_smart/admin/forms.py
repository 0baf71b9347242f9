"""Forms that show a row's own rules beside its fields, and never show a secret."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.admin.widgets import AdminTextareaWidget, AdminTextInputWidget
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

from ..exceptions import CredentialsError
from ..models import ClientRegistration, FHIRServer
from ..models.server import validate_base_url, validate_request_headers
from ..protocol.quirks import QUIRKS, QuirkError
from ..servers.registering import make_name, make_slug
from .base import ModelForm
from .quirk_fields import build_quirk_fields, read_quirk

__all__ = ["ClientRegistrationForm", "FHIRServerForm"]

# Where the secret of a registration can be.
_CREDENTIALS = ("client_secret", "client_secret_env", "client_secret_file")


class FHIRServerForm(ModelForm):
    """
    A server whose base URL is not registered twice, and is enough to begin with.

    ``request_headers`` is a field of the form alone, as ``client_secret`` is below; so
    are the quirks.
    """

    request_headers = forms.CharField(
        label=_("Extra headers of token and FHIR requests"),
        required=False,
        widget=forms.Textarea(attrs={"rows": 2, "autocomplete": "off"}),
        help_text=_(
            'A JSON object, such as {"X-Api-Key": "…"}. Stored encrypted and never '
            "shown. Leave empty to keep the stored value; {} removes it."
        ),
    )

    vars().update(build_quirk_fields())

    class Meta:
        model = FHIRServer
        exclude = ("paused", "quirks", "request_headers")
        help_texts = {
            "base_url": _(
                "The URL of the FHIR API, exactly as the vendor documents it, such as "
                "https://ehr.example.org/r4. Leave out /metadata. It cannot be changed "
                "once tokens belong to it; the documentation has a section “When an "
                "EHR moves its base URL”."
            ),
            "preset": _(
                "Fills in the vendor's known settings. Choose “none” if the vendor is "
                "not listed."
            ),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance._state.adding:
            for name in ("name", "slug"):
                if name in self.fields:
                    self.fields[name].required = False
                    self.fields[name].help_text = _("Leave empty to use the host name.")
        for name in self.fields.keys() & QUIRKS.keys():
            self.initial[name] = getattr(self.instance.quirks, name)

    @property
    def changed_quirks(self) -> dict[str, Any]:
        """The quirks that were entered, as JSON has them."""
        data = self.cleaned_data
        return {
            name: read_quirk(data[name])
            for name in QUIRKS.keys() & {*self.changed_data} & data.keys()
            # A request without the field says nothing of it.
            if data[name] or not QUIRKS[name].choices
        }

    def clean_base_url(self) -> str:
        """Refuse what is no base URL before a new server is named by its host."""
        base_url: str = self.cleaned_data["base_url"]
        validate_base_url(base_url)
        return base_url

    def clean(self) -> dict[str, Any]:
        """Name a new server by its host, where nobody has named it."""
        data = super().clean() or self.cleaned_data
        for name, value in data.items():
            # An empty JSON field would be stored as NULL.
            is_json = isinstance(self.fields[name], forms.JSONField)
            if value is None and is_json and name not in QUIRKS:
                data[name] = getattr(FHIRServer(), name)
        if headers := data.get("request_headers"):
            try:
                validate_request_headers(headers)
            except ValidationError as exc:
                self.add_error("request_headers", exc)
            else:
                self.instance.request_headers = "" if headers == "{}" else headers
        for name, value in self.changed_quirks.items():
            try:
                self.instance.quirks = self.instance.quirks.replace({name: value})
            except QuirkError as exc:
                self.add_error(name, str(exc))
        base_url = data.get("base_url")
        if self.instance._state.adding and base_url:
            if not data.get("name"):
                data["name"] = make_name(base_url)
            if not data.get("slug") and "slug" not in self.errors:
                data["slug"] = make_slug(base_url)
        return data


class ClientRegistrationForm(ModelForm):
    """
    A registration with a secret that can be replaced, and never read.

    ``client_secret`` is a field of the form alone: Django would put the stored value
    into a form's initial data.  ``secret_source`` chooses one of the three columns that
    say where the secret is, and empties the others.
    """

    secret_source = forms.ChoiceField(
        label=_("Where the secret is"),
        required=False,
        choices=(
            ("client_secret", _("stored here, encrypted")),
            ("client_secret_env", _("in an environment variable")),
            ("client_secret_file", _("in a file")),
        ),
    )
    client_secret = forms.CharField(
        label=_("Client secret"),
        required=False,
        strip=False,
        widget=forms.PasswordInput(
            render_value=False, attrs={"autocomplete": "new-password", "size": 40}
        ),
        help_text=_("Never shown. Leave empty to keep the stored value."),
    )

    class Meta:
        model = ClientRegistration
        exclude = ("client_secret",)
        widgets = {
            # One line, although some client ids are whole JWTs.
            "client_id": AdminTextInputWidget(attrs={"class": "vLargeTextField"}),
            **dict.fromkeys(
                ("ehr_scope", "standalone_scope", "system_scope"),
                AdminTextareaWidget(attrs={"rows": 2}),
            ),
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        used = (name for name in _CREDENTIALS[1:] if getattr(self.instance, name))
        self.initial["secret_source"] = next(used, _CREDENTIALS[0])
        if self.instance._state.adding and "client_secret" in self.fields:
            self.fields["client_secret"].help_text = _("Never shown again.")

    def clean(self) -> dict[str, Any]:
        """Put the secret into the row before the row's own rules are checked."""
        data = super().clean() or self.cleaned_data
        source = ""
        if data.get("token_endpoint_auth_method", "").startswith("client_secret_"):
            source = data.get("secret_source") or self.initial["secret_source"]
        data.update({name: "" for name in _CREDENTIALS[1:] if name != source})
        if source != "client_secret":
            self.instance.client_secret = ""
        elif data.get("client_secret"):
            self.instance.client_secret = data["client_secret"]
        else:
            self._check_stored_secret()
        return data

    def _check_stored_secret(self) -> None:
        try:
            self.instance.client_secret  # noqa: B018 (reading it decrypts it)
        except CredentialsError:
            # Of the instance in memory alone: with this error nothing is saved.
            self.instance.client_secret = ""
            self.add_error(
                "client_secret",
                _(
                    "The stored secret cannot be decrypted with the current keys. "
                    "Enter it again."
                ),
            )
