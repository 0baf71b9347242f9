"""Titles of the questions, and why a row that falls behind its reach does so."""

from __future__ import annotations

__all__ = ["NOTES", "REACHES"]

REACHES = {
    "fhir_read": "FHIR read",
    "fhir_pages": "10,000 Observations",
    "middleware": "Middleware",
    "fhir_view": "A page with a FHIR client",
    "login": "Login",
    "assertion": "Client assertion",
    "refresh": "Refresh in the background",
    "claim": "Claim of due grants",
    "launches": "Launches in parallel",
    "picker": "Search for an organisation",
    "growth": "Growth",
    "start_up": "Start-up",
}

_PAGES = (
    "Both parse the same JSON, which is most of the time: what is left to ours is to "
    "check each link, look for repeated resources, tell of the request and bound it. "
    "Tried: one read of the whole body, prepared routes instead of requests' own."
)
_PAGE = (
    "One more statement reads the launch with its registration, server and grant into "
    "four instances; session and user together have 14 columns. "
    "Tried: all 124 columns by select_related(), a ratio of 4; without an order, 3.2; "
    "only() of the 32 that a page needs, 2.5; the same by values_list() and from_db(), "
    "2.0. "
    "Not done: SQL compiled once and kept, which needs Django's internals."
)
_REFRESH = (
    "Two workers, the server, the broker, PostgreSQL and the measuring process share "
    "the machine's cores, and a worker's time goes into one UPDATE for each grant and "
    "the encryption of its two tokens; HTTP alone has neither. "
    "Tried: threads that do HTTP alone beside one that writes, leases for a batch by "
    "one statement, credentials prepared once, and first batches that leave before all "
    "is claimed. "
    "Not done: one statement for many grants, as an answer is stored the moment it comes; "
    "SQL of the UPDATE compiled once and kept, which needs Django's internals."
)
_SEARCH = (
    "What the database does is the same; the difference is Django's making of four "
    "statements, which is a millisecond however large the tables are, and shows where "
    "the search itself takes less than that. "
    "Tried: cards of the twenty shown alone, their links by one statement."
)
_CLAIM = (
    "Plans are the same for every size, by index; the difference is the larger index "
    "and colder pages. "
    "Tried: due grants by an index on status and time, counted and claimed by it."
)

#: By question and check: the reason, and what was tried.
NOTES: dict[tuple[str, str], str] = {
    ("fhir_read", "of-session"): (
        "Ours is between urllib3 and requests: it checks boundary and scope, gives the "
        "request an id and tells of it. Tried: one route for each host instead of "
        "reading the environment for each request, one read of the whole body."
    ),
    ("fhir_read", "of-fhirclient"): (
        "fhirclient was measured at 1.6 times a session where its models are checked; "
        "it is faster on this machine. Tried: as for the row above."
    ),
    ("fhir_pages", "of-session"): _PAGES,
    ("fhir_pages", "memory"): (
        "A page is held as bytes and as parsed JSON at the same time, and the "
        "allocator keeps some of what was freed. Tried: no page is kept but the first."
    ),
    ("fhir_pages", "memory-flat"): (
        "Names of the last resources are kept, to tell repeated ones apart: at most "
        "20,000 of them. Tried: to remember no more than that."
    ),
    ("middleware", "untouched"): (
        "A few microseconds of 25: a call within Django's chain and one before the view, "
        "the object behind request.smart, and two checks whether the answer could be for "
        "a frame. "
        "Tried: no headers parsed, no prefix made and no connections listed unless they "
        "can matter. Not done: leaving out the call before the view, which checks the "
        "key of a prefix."
    ),
    ("middleware", "prefix"): _PAGE,
    ("fhir_view", "view"): _PAGE,
    ("login", "login"): (
        "Four more statements than by hand: they write a launch and a grant of thirty "
        "columns each, and encrypt two tokens. "
        "Tried: 14 statements instead of 19; look-ups without an order, which Django "
        "builds from every column; no join with the grant that a launch does not have "
        "yet. "
        "Not done: SQL compiled once and kept, which needs Django's internals; fewer "
        "statements, as each of them holds a check."
    ),
    ("assertion", "RS384"): (
        "Beside the signature there are only a fresh jti and the checks of its "
        "arguments. Tried: one key parse for each process, one look-up for each batch."
    ),
    ("assertion", "ES384"): (
        "A signature on P-384 takes so little that the checks of its arguments show. "
        "Tried: one key parse for each process, one look-up for each batch."
    ),
    ("refresh", "of-http"): _REFRESH,
    ("refresh", "of-tasks"): _REFRESH,
    ("refresh", "of-loop"): _REFRESH,
    ("refresh", "statements"): (
        "Claims, leases and how it went are a few statements for each batch of at most "
        "100 grants, and for each tick of the beat. "
        "Tried: leases and grants of a batch by one statement each."
    ),
    ("refresh", "connections"): (
        "A connection for each batch. Tried: threads that use none."
    ),
    ("refresh", "slow"): (
        "Each batch begins and ends with fewer requests under way than there are "
        "threads. Tried: an answer makes room for the next request at once."
    ),
    ("claim", "postgresql"): _CLAIM,
    ("claim", "mariadb"): _CLAIM,
    ("claim", "sqlite"): _CLAIM,
    ("launches", "of-authlib"): (
        "Launch, identity and tokens are stored by four statements more, in two "
        "transactions more. Tried: as for a single login."
    ),
    ("launches", "p99"): (
        "Sixteen people wait for two processes, which share the cores with the people "
        "themselves and with the server. Tried: no lock is held while the server is "
        "asked."
    ),
    **{("picker", f"search-{number}"): _SEARCH for number in range(5)},
    ("start_up", "start"): (
        "A quarter of it is libraries, which somebody who signs in needs anyway: "
        "requests with urllib3, cryptography, PyJWT. The rest is 130 modules of ours: "
        "ninety classes of values, seventy patterns, nine models. "
        "Tried: Celery, the checks and the admin are loaded when they are needed, which "
        "took off a quarter. Not done: to load the flows with the first request, which "
        "would wait for them instead."
    ),
}
