"""Titles of the questions, and the reasons for rows that miss their target."""

from __future__ import annotations

__all__ = ["NOTES", "REACHES"]

REACHES = {
    "fhir_read": "FHIR read",
    "fhir_pages": "10,000 Observations",
    "middleware": "Middleware",
    "fhir_view": "A page with a FHIR client",
    "login": "Login",
    "assertion": "Client assertion",
    "refresh": "Background refresh",
    "claim": "Claiming due grants",
    "launches": "Concurrent launches",
    "clinicians": "Clinicians at work",
    "clinicians_large": "Clinicians at work for five minutes",
    "picker": "Search for an organization",
    "growth": "Growth",
    "history": "A history of launches",
    "history_large": "Ten million launches",
    "records": "A whole record",
    "records_large": "A record of 100,000 resources",
    "chart_page": "A chart in a browser",
    "start_up": "Start-up",
    "tls": "TLS",
    "asgi": "Async views",
}

_PAGES = (
    "Both parse the same JSON, which takes most of the time; beyond that, the package "
    "checks each link, detects repeated resources, reports the request and limits it. "
    "Tried: one read of the whole body; prepared routes instead of those of requests."
)
_PAGE = (
    "One more statement reads the launch with its registration, server and grant into "
    "four instances; session and user together have 14 columns. "
    "With select_related(), Django composes a statement of 113 columns for each page, "
    "which takes about a millisecond. "
    "Tried: without ordering, 3.2; only() with the 32 columns that a page needs, 2.5; "
    "the same with values_list() and from_db(), 2.0. In use is a statement that Django "
    "composes once and that reads all columns, so that there are no lists of columns: "
    "it takes two thirds off the function calls of a page."
)
_REFRESH = (
    "Two workers, the server, the broker, PostgreSQL and the measuring process share "
    "the machine's cores, and a worker spends its time on one UPDATE for each grant and "
    "on encrypting its two tokens; HTTP alone does neither. "
    "Tried: threads that only do HTTP next to one that writes, one statement for the "
    "leases of a batch, credentials prepared once, sending the first batches before "
    "all grants are claimed, reading the registration once for a batch, and writing "
    "only columns that changed; writing out the UPDATE that stores the tokens, which is "
    "in use, because a queryset composes it anew for each grant and then reaches 0.44. "
    "Without gain: fewer threads, sending only as fast as is stored, and a queue "
    "instead of ThreadPoolExecutor. "
    "Not done: one statement for many grants, since each response is stored immediately."
)
_WAITS = (
    "A loop and a task for each grant mostly wait for the 5 ms that the server takes; "
    "the package sends sixteen requests at a time and is limited by the processor. So "
    "the ratio depends on the machine: where HTTP alone took 563 µs for a grant, the "
    "same code reached 9.9 times a loop and 12.4 times a task each; where it took "
    "844 µs, 8.1 and 10.6 times; 1,150 µs, 5.9 and 7.8 times. " + _REFRESH
)
_SEARCH = (
    "The database does the same work; the difference is Django building four "
    "statements, which takes a millisecond regardless of the size of the tables and is "
    "noticeable where the search itself takes less than that. "
    "Tried: building cards only for the twenty shown, with their links in one statement."
)
_CLAIM = (
    "The query plans are the same for every size and use an index; the difference is "
    "the larger index and colder pages. "
    "Tried: counting and claiming due grants with an index on status and time."
)
_SQLITE = (
    "Without statistics, SQLite reads the grants of the registration, by the index of "
    "its foreign key, and not those that are due. A site of this size has a server for "
    "its database. Not done: a hint that only SQLite understands."
)
_SAME_WORK = (
    "The peer keeps a launch and its tokens in one row of ten columns. "
    "The package keeps a launch and a grant, since tokens can outlive a launch; it looks "
    "up what else is open in the browser, and each server has options of its own. "
    "The processes of the site take as long for both; PostgreSQL takes more, for "
    "eighteen indexes of launches and grants, their foreign keys, statements of up to "
    "77 columns, and one more transaction. Processes differ from start to start: runs "
    "of the same code differ by up to seven hundredths. "
    "Tried: composing the statements that read a registration and a launch only once, "
    "which is in use; writing out those that change a launch, which was taken back for "
    "plain querysets; not counting the other launches of a browser with few cookies; "
    "no indexes for LIKE; indexes of the browser with the status, and parsing "
    "stored scopes once, which saved a fiftieth; writing an identity once an hour "
    "instead of with each launch, a thirtieth; session and last_login in one "
    "transaction, which saved no more than single runs differ and was taken back, since on SQLite a "
    "transaction that reads first can fail when another connection writes. "
    "Not done: tokens in the row of the launch, and foreign keys without indexes, with "
    "which the purge and the deletion of a user would read whole tables."
)

_RECORD = (
    "A bare loop sends one statement for each page. The package sends five: whether the "
    "server is paused, which versions are known, the lock of the run, the resources, "
    "and the progress. It also searches each resource for references and checks whose "
    "it is. "
    "Tried: one row for each resource instead of two; a key that contains the run, so "
    "that PostgreSQL without statistics does not read all rows of the run. "
    "Not done: several pages in one transaction, of which a killed process would read "
    "all again."
)

#: By question and check: the reason, and what was tried.
NOTES: dict[tuple[str, str], str] = {
    ("fhir_read", "of-session"): (
        "The package also sends through the adapter of requests; it checks boundary and "
        "scope, assigns a request id and reports the request. "
        "With Python 3.13 and Django 6.1 it was 1.06: a session is as fast there, while "
        "bare urllib3 and the other clients take longer. "
        "Tried: reading the environment once for each host instead of for each request."
    ),
    ("fhir_read", "of-fhirclient"): (
        "Both send through requests; fhirclient builds a model from the response, and "
        "took 1.2 to 1.4 times as long as a session. Tried: as for the row above."
    ),
    ("fhir_pages", "of-session"): _PAGES,
    ("fhir_pages", "memory"): (
        "A page is held as bytes and as parsed JSON at the same time, and the "
        "allocator keeps some of the freed memory. Tried: keeping only the first page."
    ),
    ("fhir_pages", "memory-flat"): (
        "The names of the latest resources are kept to detect repeated ones: at most "
        "20,000. Tried: keeping no more than that."
    ),
    ("middleware", "untouched"): (
        "A few microseconds of 50: a call within Django's chain and one before the "
        "view, the object behind request.smart, and two checks whether the response "
        "could be for a frame. Runs on three machines gave 1.089 to 1.103. "
        "Tried: parsing headers, building prefixes and listing connections only when "
        "needed; reading the prefix setting once, since a missing setting costs an "
        "exception each time. Not done: omitting the call before the view, which checks "
        "the key of a prefix."
    ),
    ("middleware", "prefix"): _PAGE,
    ("fhir_view", "view"): _PAGE,
    ("login", "login"): (
        "Four more statements than by hand: they write a launch and a grant of thirty "
        "columns each, with two encrypted tokens. "
        "Tried: 12 statements instead of 19; composing the statements that read a "
        "registration and a launch only once, which saved a third of the function calls; "
        "parsing the configuration once less, and reading settings and ciphers less "
        "often, 0.04; finding users by the identities that are read anyway, without a "
        "subquery, and parsing only scopes that were not granted as requested, 0.1; "
        "writing out the statements that change a launch, which was taken back. "
        "Not done: fewer statements, since each of them enforces a rule."
    ),
    ("login", "same-work"): _SAME_WORK,
    ("assertion", "RS384"): (
        "Besides the signature, there is only a new jti and the validation of the "
        "arguments. Tried: parsing each key once per process, one lookup per batch."
    ),
    ("assertion", "ES384"): (
        "A P-384 signature is so fast that the validation of the arguments is "
        "noticeable. Tried: parsing each key once per process, one lookup per batch."
    ),
    ("refresh", "of-http"): _REFRESH,
    ("refresh", "of-tasks"): _WAITS,
    ("refresh", "of-loop"): _WAITS,
    ("refresh", "statements"): (
        "Claims, leases and results are a few statements for each batch of at most "
        "250 grants, and for each tick of beat. "
        "Tried: one statement each for the leases and the grants of a batch."
    ),
    ("refresh", "connections"): (
        "One connection for each batch. Tried: threads that use none."
    ),
    ("refresh", "slow"): (
        "At its beginning and end, a batch has fewer concurrent requests than threads; "
        "on four machines, the same code gave 0.897 to 0.918, and 0.826 on one whose "
        "processor takes twice as long for HTTP alone. "
        "Tried: starting the next request as soon as a response arrives."
    ),
    ("claim", "postgresql"): _CLAIM,
    ("claim", "mariadb"): _CLAIM,
    ("claim", "sqlite"): _SQLITE,
    ("claim", "sqlite-plan"): _SQLITE,
    ("launches", "of-authlib"): (
        "Storing launch, identity and tokens takes three more statements in two more "
        "transactions; the peer stores nothing but the session and the user. The same "
        "work, written plainly with Authlib, reaches less (the next row). "
        "Tried: as for a single login. Not done: to reach the target, a launch would "
        "have to leave out more than half of that."
    ),
    ("launches", "launches-same-work"): _SAME_WORK,
    ("launches", "launch-requests-same-work"): _SAME_WORK,
    ("launches", "p99"): (
        "Sixteen users wait for two processes, which share the cores with the users "
        "themselves and with the server. Tried: holding no lock during requests to the "
        "server."
    ),
    ("clinicians_large", "outbound"): (
        "Each page sends one request. The server here forbids caching of its "
        "configuration and keys, so they are fetched again after five minutes: six "
        "requests beside those of 6,300 pages. Tried: a run of two and a half minutes, "
        "which sends exactly one for each page."
    ),
    ("history_large", "a purge of 1,000"): (
        "0.11 seconds instead of 0.075, because the oldest of ten million rows are on "
        "pages that are not in memory; among a million, it takes 0.077. On a slower "
        "machine, it took 0.2. Tried: nothing, since nobody waits for this task."
    ),
    ("records", "of-loop"): _RECORD,
    ("records_large", "of-loop"): _RECORD,
    **{("picker", f"search-{number}"): _SEARCH for number in range(5)},
    ("start_up", "start"): (
        "A quarter of it is libraries that a sign-in needs anyway: requests with "
        "urllib3, cryptography, PyJWT. The rest is 130 modules of the package: ninety "
        "value classes, seventy patterns, nine models. "
        "Tried: loading Celery, the checks and the admin when they are needed, which "
        "saved a quarter. Not done: loading the HTTP client with the first launch or "
        "read, which would be delayed instead."
    ),
    ("tls", "refresh"): (
        "Each round begins with the handshakes of 32 connections, which HTTP alone "
        "keeps open. Tried: 2,000 refreshes in a round instead of 600, which share them."
    ),
    ("tls", "refresh-handshakes"): (
        "Two workers have 16 threads each. A token request must not be lost, so it "
        "uses no connection that was idle for 3 seconds: a run that takes longer "
        "opens further ones."
    ),
    ("asgi", "of-threads"): (
        "Under ASGI, Django runs each synchronous part of its middleware in a thread: "
        "a page that only uses request.user takes 5.3 ms of processor time under "
        "uvicorn and 3.0 ms under gunicorn. "
        "Tried: nothing in the package; its middleware is asynchronous, except for "
        "loading the launch."
    ),
    ("asgi", "stalls"): (
        "The users keep the process busy, and the event loop waits for Python's lock "
        "like the threads whose responses have arrived. "
        "Tried: 16 threads for async calls instead of 64, which halves the stalls; "
        "not the default, since a slow EHR would then hold up more of its other "
        "reads."
    ),
}
