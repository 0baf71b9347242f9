"""An app with users of its own: known by e-mail and a UUID, without a user name."""
