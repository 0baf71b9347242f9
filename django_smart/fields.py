"""Model fields: text that is encrypted at rest, and digests for exact lookups."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, cast

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings
from django.core.exceptions import FieldError, ImproperlyConfigured
from django.db import models
from django.db.models.query_utils import DeferredAttribute

from .conf import conf
from .exceptions import CredentialsError

__all__ = ["DigestField", "EncryptedTextField", "digest", "get_fernet", "reencrypt"]

if TYPE_CHECKING:
    _TextField = models.TextField[str, str]
    _CharField = models.CharField[str | None, str | None]
else:  # Django's fields take type arguments in the stubs alone.
    _TextField = models.TextField
    _CharField = models.CharField

_MARK = "fernet:"
# Inside the ciphertext, between the column that a secret belongs to and the secret.
_SEPARATOR = "\0"


def digest(*values: str) -> str:
    """
    SHA-256 of *values*, as 64 hexadecimal digits.

    Each value is hashed with its length, so that two lists never collide.  Digests
    compare exactly on every database, whatever its text collation.
    """
    state = hashlib.sha256()
    for value in values:
        encoded = value.encode()
        state.update(len(encoded).to_bytes(8, "big"))
        state.update(encoded)
    return state.hexdigest()


def get_fernet() -> MultiFernet:
    """
    Return the current ciphers: the first encrypts, each may decrypt.

    Raises:
        ImproperlyConfigured: an entry of ``SMART_ENCRYPTION_KEYS`` is not a Fernet key.
    """
    return MultiFernet(_get_fernets())


def reencrypt(stored: Any) -> Any:
    """
    Re-encrypt a value that ``values()`` returned from an encrypted column.

    Returns:
        *stored* itself if it is already current, or if there is nothing to encrypt.

    Raises:
        CredentialsError: no current key decrypts it, or it belongs to another column.
    """
    if not isinstance(stored, _Secret):
        return stored
    plaintext = stored.plaintext
    try:
        _get_fernets()[0].decrypt(stored.ciphertext.removeprefix(_MARK))
    except InvalidToken:
        return _Secret(plaintext=plaintext, column=stored.column)
    return stored


def _decrypt(ciphertext: str) -> str:
    """Return the column that a secret belongs to, and the secret."""
    try:
        return get_fernet().decrypt(ciphertext.removeprefix(_MARK)).decode()
    except InvalidToken as exc:
        raise CredentialsError(
            "A stored secret cannot be decrypted with the current keys; add "
            "the key it was encrypted with back to SMART_ENCRYPTION_KEYS (or "
            "SECRET_KEY_FALLBACKS)."
        ) from exc


def _get_fernets() -> tuple[Fernet, ...]:
    return _build_fernets(
        conf.SMART_ENCRYPTION_KEYS, settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS
    )


@lru_cache(maxsize=8)
def _build_fernets(keys: tuple[str, ...], *secrets: str) -> tuple[Fernet, ...]:
    try:
        own = [Fernet(key) for key in keys]
    except ValueError as exc:
        raise ImproperlyConfigured(
            "SMART_ENCRYPTION_KEYS contains a value that is not a Fernet key; "
            "generate one with cryptography.fernet.Fernet.generate_key()."
        ) from exc
    # Keys derived from SECRET_KEY still decrypt after the site sets its first own key,
    # because they encrypted until then.
    return (*own, *(Fernet(_derive(str(secret))) for secret in secrets))


def _derive(secret: str) -> bytes:
    hkdf = HKDF(SHA256(), length=32, salt=None, info=b"django_smart encryption at rest")
    return base64.urlsafe_b64encode(hkdf.derive(secret.encode()))


class _Plaintext(str):
    """A string without a ``repr``, because error reports show variables."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<hidden>"


class _Secret:
    """
    The value of an encrypted field in an instance: decrypted once, at first use.

    The ciphertext contains the name of its column, so it is useless if someone moves it
    to another column.
    """

    __slots__ = ("_ciphertext", "_plaintext", "column")

    def __init__(
        self,
        *,
        column: str,
        ciphertext: str | None = None,
        plaintext: str | None = None,
    ) -> None:
        self.column = column
        self._ciphertext = ciphertext
        self._plaintext = plaintext

    def __repr__(self) -> str:
        return "<encrypted>"

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickled row (a cache, a broker message) contains only ciphertext.
        return partial(_Secret, column=self.column, ciphertext=self.ciphertext), ()

    def __deepcopy__(self, memo: object) -> _Secret:
        return self

    @property
    def ciphertext(self) -> str:
        if self._ciphertext is None:
            text = f"{self.column}{_SEPARATOR}{self._plaintext or ''}"
            self._ciphertext = _MARK + get_fernet().encrypt(text.encode()).decode()
        return self._ciphertext

    @property
    def plaintext(self) -> str:
        if self._plaintext is None:
            text = _decrypt(self._ciphertext or "")
            column, _, plaintext = text.partition(_SEPARATOR)
            if column != self.column:
                raise CredentialsError(
                    f"A stored secret in {self.column} belongs to another "
                    "column; the database may have been tampered with."
                )
            self._plaintext = plaintext
        return self._plaintext


class _EncryptedAttribute(DeferredAttribute):
    """Reads as plain text; the instance itself stores a ``_Secret``."""

    field: EncryptedTextField

    def __get__(self, instance: Any, cls: Any = None) -> Any:
        value = super().__get__(instance, cls)
        return _Plaintext(value.plaintext) if isinstance(value, _Secret) else value

    def __set__(self, instance: Any, value: Any) -> None:
        if isinstance(value, str) and value:
            value = _Secret(plaintext=value, column=self.field.full_name)
        # Where DeferredAttribute reads it, like the descriptor of ImageField.
        instance.__dict__[self.field.attname] = value


class EncryptedTextField(_TextField):
    """
    Text that is stored encrypted with the keys of ``SMART_ENCRYPTION_KEYS``.

    It is bound to this column of this model: a ciphertext of another column is refused.
    An empty string is stored unencrypted.  It is decrypted on first access, and its
    ``repr`` does not show the text.  It cannot be ordered by, and the only lookups are
    ``isnull`` and the exact empty string.
    """

    descriptor_class = _EncryptedAttribute

    @property
    def full_name(self) -> str:
        """The column's name, such as ``django_smart.TokenGrant.refresh_token``."""
        return f"{self.model._meta.label}.{self.name}"

    def from_db_value(self, value: str | None, *_args: object) -> Any:
        return _Secret(ciphertext=value, column=self.full_name) if value else value

    def pre_save(self, model_instance: models.Model, add: bool) -> Any:
        return model_instance.__dict__.get(self.attname)

    def get_prep_value(self, value: Any) -> Any:
        if isinstance(value, _Secret):
            if value.column == self.full_name:
                return value.ciphertext
            value = value.plaintext
        if isinstance(value, str) and value:
            return _Secret(plaintext=value, column=self.full_name).ciphertext
        return value

    def get_lookup(self, lookup_name: str) -> Any:
        if lookup_name not in {"isnull", "exact"}:
            raise FieldError(f"{self.name} is encrypted and cannot be used in filters.")
        return super().get_lookup(lookup_name)

    def to_python(self, value: Any) -> Any:
        # Fixtures contain the ciphertext that value_to_string() wrote.
        if isinstance(value, str) and value.startswith(_MARK):
            return _Secret(ciphertext=value, column=self.full_name)
        return value

    def value_to_string(self, obj: models.Model) -> str:
        return str(self.get_prep_value(obj.__dict__.get(self.attname)) or "")


class DigestField(_CharField):
    """
    SHA-256 of other attributes of the row, updated by ``save()``.

    Args:
        sources: names of attributes or properties; if one of them is ``None`` the
            digest is ``NULL``, which leaves the row out of a unique constraint.
    """

    def __init__(self, *args: Any, sources: Iterable[str] = (), **kwargs: Any) -> None:
        self.sources = tuple(sources)
        kwargs.setdefault("max_length", 64)
        kwargs.setdefault("editable", False)
        super().__init__(*args, **kwargs)

    def deconstruct(self) -> Any:
        name, path, args, kwargs = super().deconstruct()
        return name, path, args, {**kwargs, "sources": self.sources}

    def pre_save(self, model_instance: models.Model, add: bool) -> str | None:
        for source in self.sources:
            if not hasattr(type(model_instance), source):
                raise FieldError(
                    f"{model_instance._meta.label}.{self.name} cannot be computed "
                    f"without {source}, which models in migrations do not have. Use "
                    "smart_register --from to add servers and registrations, and "
                    "queryset.update() to change other columns."
                )
        values = [getattr(model_instance, source) for source in self.sources]
        value = None if None in values else digest(*cast("list[str]", values))
        setattr(model_instance, self.attname, value)
        return value
