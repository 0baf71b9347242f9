"""FHIR data types in words."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from example_project import fhirtext

_MEMBERS = [
    *("use", "text", "given", "family", "prefix", "period", "end", "line", "city"),
    *("system", "value", "type", "coding", "code", "display"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(_MEMBERS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def test_contact_points_out_of_use_are_left_out():
    points = [
        {"system": "phone", "use": "mobile", "value": "+45 20"},
        {"system": "phone", "use": "old", "value": "+45 10"},
        {"system": "fax", "value": "+45 30"},
        {"system": "email", "value": "a@example.org"},
        {"system": "email"},
    ]
    assert fhirtext.telecom(points) == [
        ("Telephone, mobile", "+45 20"),
        ("Email", "a@example.org"),
    ]


@given(JSON)
def test_odd_json_never_raises(value):
    fhirtext.telecom(value)
