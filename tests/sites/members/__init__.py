"""An app with users as cookiecutter-django makes them: an e-mail and one name."""
