"""The look of the EHR: what gets into a style sheet, and what never does."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from django_smart.protocol.style import SMARTStyle, parse_style

# As the specification has it, in JSON this time: its own is a JavaScript object.
PUBLISHED = {
    "color_background": "#edeae3",
    "color_error": "#9e2d2d",
    "color_highlight": "#69b5ce",
    "color_modal_backdrop": "",
    "color_success": "#498e49",
    "color_text": "#303030",
    "dim_border_radius": "6px",
    "dim_font_size": "13px",
    "dim_spacing_size": "20px",
    "font_family_body": "Georgia, Times, 'Times New Roman', serif",
    "font_family_heading": (
        "'HelveticaNeue-Light', Helvetica, Arial, 'Lucida Grande', sans-serif;"
    ),
}
KINDS = ["color_text", "dim_spacing_size", "dim_font_size", "font_family_body"]
# Nothing that could end a declaration, a rule or the element around it.
SAFE_CSS = re.compile(r'(?:--smart-[a-z-]+:[A-Za-z0-9#(),.%/ _"-]+;)*')


def parse(**members: object) -> SMARTStyle:
    return parse_style(json.dumps(members).encode())


def read(name: str, value: object) -> str | None:
    value = getattr(parse(**{name: value}), name)
    assert isinstance(value, str | None)
    return value


@pytest.mark.compliance("RESP-15")
def test_the_published_style_is_read():
    style = parse(**PUBLISHED)
    assert style.problems == ()
    assert style == SMARTStyle(
        color_background="#edeae3",
        color_error="#9e2d2d",
        color_highlight="#69b5ce",
        color_modal_backdrop=None,
        color_success="#498e49",
        color_text="#303030",
        dim_border_radius="6px",
        dim_font_size="13px",
        dim_spacing_size="20px",
        font_family_body='Georgia, Times, "Times New Roman", serif',
        font_family_heading=(
            '"HelveticaNeue-Light", Helvetica, Arial, "Lucida Grande", sans-serif'
        ),
    )


def test_a_style_sheet_sets_what_is_there_and_no_more():
    style = parse(color_text="#303030", dim_border_radius="6px")
    assert style.to_properties() == {
        "--smart-color-text": "#303030",
        "--smart-dim-border-radius": "6px",
    }
    assert style.to_css() == (
        ":root{--smart-color-text:#303030;--smart-dim-border-radius:6px;}"
    )
    assert style
    assert len(parse(**PUBLISHED).to_properties()) == 10


@pytest.mark.parametrize(
    "members",
    [{}, {"color_text": None}, {"color_text": ""}, {"color_border": "red"}],
)
def test_what_is_absent_empty_or_unknown_is_nothing(members):
    style = parse(**members)
    assert style == SMARTStyle()
    assert style.problems == ()
    assert not style
    assert style.to_css() == ""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("#fff", "#fff"),
        ("#FFF8", "#fff8"),
        ("#A1b2C3", "#a1b2c3"),
        ("#a1b2c3d4", "#a1b2c3d4"),
        ("RebeccaPurple", "rebeccapurple"),
        ("transparent", "transparent"),
        (" red ", "red"),
        ("red;", "red"),
        ("red ;", "red"),
        ("rgb(1, 2, 3)", "rgb(1, 2, 3)"),
        ("rgba(1,2,3,.5)", "rgba(1,2,3,.5)"),
        ("rgb(1% 2.25% 3% / 50%)", "rgb(1% 2.25% 3% / 50%)"),
        ("RGB(255 255 255)", "rgb(255 255 255)"),
        ("hsl(120, 50%, 50%)", "hsl(120, 50%, 50%)"),
        ("hsla(120deg, 50%, 50%, 0.5)", "hsla(120deg, 50%, 50%, 0.5)"),
        ("hsl(120deg 50% 50% / .5)", "hsl(120deg 50% 50% / .5)"),
    ],
)
def test_a_color_is_read(value, expected):
    assert read("color_text", value) == expected


@pytest.mark.parametrize(
    "value",
    [
        *("#ff", "#fffff", "#fffffff", "#ggg", "fff", "#fff;color:red", "##fff"),
        *("reddish", "inherit", "currentcolor", "var(--x)", "url(//x)", "red\n"),
        *("rgb(1,2)", "rgb(1,2,3,4,5)", "rgb(1 2 3 4)", "rgb(1, 2 3)", "rgb(-1,2,3)"),
        *("rgb(1000,2,3)", "rgb(1 2)", "rgb(1 2 3 / )", "rgb(expression(1),2,3)"),
        *("hsl(1,2,3)", "hsl(1 2% 3)", "hsl(1rad,2%,3%)", "color(srgb 1 1 1)"),
        *("red;;", "; red", "red}", "red</style>", "red/**/", "r\\65 d", "réd"),
    ],
)
def test_what_is_no_color_is_dropped(value):
    assert read("color_text", value) is None


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("dim_spacing_size", "0", "0"),
        ("dim_spacing_size", "0px", "0px"),
        ("dim_spacing_size", "20PX", "20px"),
        ("dim_spacing_size", "100px", "100px"),
        ("dim_spacing_size", "75pt", "75pt"),
        ("dim_spacing_size", "6.25em", "6.25em"),
        ("dim_border_radius", ".5rem", ".5rem"),
        ("dim_border_radius", "6px;", "6px"),
        ("dim_font_size", "8px", "8px"),
        ("dim_font_size", "6pt", "6pt"),
        ("dim_font_size", "48px", "48px"),
        ("dim_font_size", "3rem", "3rem"),
        ("dim_font_size", ".5em", ".5em"),
    ],
)
def test_a_dimension_is_read(name, value, expected):
    assert read(name, value) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dim_spacing_size", "100.1px"),
        ("dim_spacing_size", "75.1pt"),
        ("dim_spacing_size", "6.26em"),
        ("dim_spacing_size", "6.26rem"),
        ("dim_spacing_size", "-1px"),
        ("dim_spacing_size", "1"),
        ("dim_spacing_size", "1 px"),
        ("dim_spacing_size", "10%"),
        ("dim_spacing_size", "1vw"),
        ("dim_spacing_size", "calc(1px)"),
        ("dim_spacing_size", "00"),
        ("dim_spacing_size", "1.px"),
        ("dim_spacing_size", "1e2px"),
        ("dim_spacing_size", "1px;x"),
        ("dim_border_radius", "1px 2px"),
        ("dim_font_size", "0"),
        ("dim_font_size", "7.9px"),
        ("dim_font_size", "48.1px"),
        ("dim_font_size", "3.1em"),
        ("dim_font_size", "large"),
        ("dim_font_size", "١٢px"),
    ],
)
def test_what_is_no_dimension_of_a_sensible_size_is_dropped(name, value):
    assert read(name, value) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("serif", "serif"),
        ("system-ui,-apple-system", "system-ui, -apple-system"),
        ("Open Sans", '"Open Sans"'),
        ("'Open Sans', Arial", '"Open Sans", Arial'),
        ('"3270 Medium"', '"3270 Medium"'),
        ("_x", "_x"),
        ("XTypewriter X", '"XTypewriter X"'),
        ("'inherit'", '"inherit"'),
        ("a" * 64, "a" * 64),
        (", ".join("abcdefghij"), "a, b, c, d, e, f, g, h, i, j"),
    ],
)
def test_a_list_of_fonts_is_read(value, expected):
    assert read("font_family_body", value) == expected


@pytest.mark.parametrize(
    "value",
    [
        *("inherit", "Initial", "unset", "revert", "revert-layer", "default"),
        *(
            "Arial,",
            ",Arial",
            "Arial,,Arial",
            "Arial,\tArial",
            "Arial  Narrow",
            "3270",
            "--x",
        ),
        *("'Arial", "Arial'", "'Arial\"", "''", "' x'", "'a', 'b''", "'a\\'"),
        *("url(x)", "a;b", "a}b", "a/**/b", "'</style>'", "a\tb", "Ünit"),
        *("a" * 65, "a" * 66, "'" + "a" * 66 + "'", " ".join(["abcdefgh"] * 8)),
        " ".join(["abcdefghij"] * 6),
        ", ".join("abcdefghijk"),
    ],
)
def test_what_is_no_list_of_fonts_is_dropped(value):
    assert read("font_family_body", value) is None


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("value", [1, True, ["red"], {"a": "red"}])
def test_what_is_no_text_is_dropped(name, value):
    assert read(name, value) is None


def test_what_is_dropped_is_told_by_name_and_the_rest_stays():
    style = parse(color_text="red", color_error="url(//x)", dim_font_size=13)
    assert style == SMARTStyle(color_text="red")
    assert style.problems == (
        "color_error is not a valid value",
        "dim_font_size is not a valid value",
    )
    assert "//x" not in repr(style)


@pytest.mark.parametrize(
    "body", [b"", b"{color_text: 'red'}", b"[]", b'"red"', b"\xff", b"<style></style>"]
)
def test_what_is_no_json_object_is_no_style(body):
    style = parse_style(body)
    assert style == SMARTStyle()
    assert len(style.problems) == 1
    assert style.problems[0].startswith("The style ")


@given(
    st.dictionaries(
        st.sampled_from(KINDS),
        st.text()
        | st.text(alphabet="#(),.%/ _\"'-;:{}<>\\abefgprxz012")
        | st.sampled_from(sorted(set(PUBLISHED.values()))),
    )
)
@example({"font_family_body": "'a','b'"})
@pytest.mark.compliance("RESP-15")
def test_nothing_gets_out_of_its_declaration(members):
    css = parse(**members).to_css()
    if css:
        inner = css.removeprefix(":root{").removesuffix("}")
        assert css == f":root{{{inner}}}"
        assert SAFE_CSS.fullmatch(inner)
        assert inner.count('"') % 2 == 0
        assert "/*" not in inner
