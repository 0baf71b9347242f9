"""
User-access brands: people choose their organization by its name at ``login/``.

An app of its own: add ``"django_smart.contrib.brands"`` to ``INSTALLED_APPS``.  Without
it, the page lists the registered servers.
"""
