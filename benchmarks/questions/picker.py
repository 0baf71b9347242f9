"""Searching for an organisation among 50,000."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.harness import Report, Variant, measure
from benchmarks.setting_up import configured, make_registration
from benchmarks.stub import running_stub

__all__ = ["TEXT", "run"]

TEXT = """
A page of the picker, from 50,000 organizations with one endpoint each, on PostgreSQL; a fifth of them lead to a registered server.
*By hand* sends the same statements through a cursor, and fetches the rows without processing them.
"""

_BASE = "SQL by hand"
_OURS = "django_smart"
_CITIES = ("Ames", "Boston", "Cedar Rapids", "Dubuque", "Fargo", "Grinnell", "Omaha")
_QUERIES = ("hosp", "hosp bos", "00005", "grinn hospital 000", "nowhere")
# Few: some of the searches take a tenth of a second, and there are two of each.
_IN_A_ROUND = 2


def run(report: Report) -> None:
    """Measure."""
    with running_stub() as stub, configured("postgresql"):
        _fill(report.size(50_000, smoke=1_000), make_registration(stub).server)
        from django_smart.views.picker import find_choices

        times: dict[str, list[float | None]] = {}
        for query in _QUERIES:
            found = measure(
                [
                    Variant(name=f"{_BASE}: {query}", run=_by_hand(query)),
                    Variant(
                        name=f"{_OURS}: {query}",
                        run=_repeat(partial(find_choices, query)),
                    ),
                ],
                rounds=report.rounds(16),
                operations=_IN_A_ROUND,
            )
            report.add_table(
                f"search-{len(times) // 2}",
                f"Search for “{query}”",
                found,
                base=f"{_BASE}: {query}",
                operations=_IN_A_ROUND,
                unit="search",
            )
            report.check_ratio(
                f"search-{len(times) // 2}",
                f"“{query}”, of SQL by hand",
                name=f"{_OURS}: {query}",
                base=f"{_BASE}: {query}",
                at_most=1.2,
            )
            times |= found


def _repeat(find: Callable[[], Any]) -> Callable[[int], None]:
    def run_it(number: int) -> None:
        for _ in range(number):
            find()

    return run_it


def _by_hand(query: str) -> Callable[[int], None]:
    """What the search asks the database, without what it makes of the answer."""
    from django.db import connection

    from django_smart.views.picker import find_choices

    statements: list[tuple[str, Any]] = []

    def keep(execute: Any, sql: str, params: Any, many: Any, context: Any) -> Any:
        statements.append((sql, params))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(keep):
        find_choices(query)

    def search() -> None:
        with connection.cursor() as cursor:
            for sql, params in statements:
                cursor.execute(sql, params)
                cursor.fetchall()

    return _repeat(search)


def _fill(number: int, server: Any) -> None:
    """As an import would, without its checks."""
    from django_smart.contrib.brands.importing import refresh_statistics
    from django_smart.contrib.brands.models import Brand, BrandBundle, BrandEndpoint
    from django_smart.fields import digest
    from django_smart.models.search_words import split_words

    source = BrandBundle.objects.create(location="made")
    cities = [_CITIES[n % len(_CITIES)] for n in range(number)]
    names = [f"Hospital {n:05} of {city}" for n, city in enumerate(cities)]
    brands = Brand.objects.bulk_create(
        (
            Brand(
                bundle=source,
                merge_digest=digest(name),
                name=name,
                sort_name=" ".join(split_words(name)),
                search_text=f" {' '.join(split_words(name))} ia good health",
                places=[f"{city}, IA"],
            )
            for name, city in zip(names, cities, strict=True)
        ),
        5000,
    )
    BrandEndpoint.objects.bulk_create(
        (
            BrandEndpoint(
                brand=brand,
                address=server.base_url if n % 5 == 0 else f"https://a.example/{n}",
            )
            for n, brand in enumerate(brands)
        ),
        5000,
    )
    refresh_statistics()
