"""
The EHR's style, from ``smart_style_url`` (experimental).

Every value goes into a style sheet, so each is parsed by its grammar and written again;
invalid values are dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields

from django_smart.exceptions import SMARTError
from django_smart.protocol.json import parse_json_object

__all__ = ["SMARTStyle", "parse_style"]

_NUMBER = r"(?:[0-9]{1,3}(?:\.[0-9]{1,4})?|\.[0-9]{1,4})"
_CHANNEL = rf"{_NUMBER}%?"
_HUE = rf"{_NUMBER}(?:deg)?"
_COLOR = re.compile(
    r"#(?:[0-9a-f]{3,4}|[0-9a-f]{6}|[0-9a-f]{8})"
    rf"|rgba?\( *{_CHANNEL}(?: *, *{_CHANNEL}){{2,3}} *\)"
    rf"|rgba?\( *{_CHANNEL}(?: +{_CHANNEL}){{2}}(?: */ *{_CHANNEL})? *\)"
    rf"|hsla?\( *{_HUE}(?: *, *{_NUMBER}%){{2}}(?: *, *{_CHANNEL})? *\)"
    rf"|hsla?\( *{_HUE}(?: +{_NUMBER}%){{2}}(?: */ *{_CHANNEL})? *\)"
)
# CSS Color Module Level 4, section 6.1.
_NAMED_COLORS = """
aliceblue antiquewhite aqua aquamarine azure beige bisque black blanchedalmond blue
blueviolet brown burlywood cadetblue chartreuse chocolate coral cornflowerblue cornsilk
crimson cyan darkblue darkcyan darkgoldenrod darkgray darkgreen darkgrey darkkhaki
darkmagenta darkolivegreen darkorange darkorchid darkred darksalmon darkseagreen
darkslateblue darkslategray darkslategrey darkturquoise darkviolet deeppink deepskyblue
dimgray dimgrey dodgerblue firebrick floralwhite forestgreen fuchsia gainsboro
ghostwhite gold goldenrod gray green greenyellow grey honeydew hotpink indianred indigo
ivory khaki lavender lavenderblush lawngreen lemonchiffon lightblue lightcoral lightcyan
lightgoldenrodyellow lightgray lightgreen lightgrey lightpink lightsalmon lightseagreen
lightskyblue lightslategray lightslategrey lightsteelblue lightyellow lime limegreen
linen magenta maroon mediumaquamarine mediumblue mediumorchid mediumpurple
mediumseagreen mediumslateblue mediumspringgreen mediumturquoise mediumvioletred
midnightblue mintcream mistyrose moccasin navajowhite navy oldlace olive olivedrab
orange orangered orchid palegoldenrod palegreen paleturquoise palevioletred papayawhip
peachpuff peru pink plum powderblue purple rebeccapurple red rosybrown royalblue
saddlebrown salmon sandybrown seagreen seashell sienna silver skyblue slateblue
slategray slategrey snow springgreen steelblue tan teal thistle tomato transparent
turquoise violet wheat white whitesmoke yellow yellowgreen
"""
_COLOR_NAMES = frozenset(_NAMED_COLORS.split())
_DIMENSION = re.compile(rf"({_NUMBER})(px|pt|em|rem)|0")
# In pixels, at the browser's default font size.
_UNITS = {"px": 1.0, "pt": 4 / 3, "em": 16.0, "rem": 16.0}
# Pixels; more would move a page's content out of view.
_MAX_DIMENSION = 100.0
# Pixels; smaller text is unreadable.
_FONT_SIZES = (8.0, 48.0)
_FONT_NAME = re.compile(r"-?[A-Za-z_][A-Za-z0-9_\-]{0,63}")
_QUOTED_FONT_NAME = re.compile(r"([\"'])([A-Za-z0-9][A-Za-z0-9 _\-]{0,63})\1")
_MAX_FONTS = 10
# These have a meaning other than a font.
_KEYWORDS = {"default", "inherit", "initial", "revert", "revert-layer", "unset"}


@dataclass(frozen=True, kw_only=True, slots=True)
class SMARTStyle:
    """
    The EHR's style; each value is CSS that can be used unchanged.

    A property is ``None`` if the EHR does not set it, or not safely.

    Attributes:
        problems: what was dropped and why, without values.

    Spec: SMART App Launch 2.2, "Scopes and Launch Context", Styling.
    """

    color_background: str | None = None
    color_error: str | None = None
    color_highlight: str | None = None
    color_modal_backdrop: str | None = None
    color_success: str | None = None
    color_text: str | None = None
    dim_border_radius: str | None = None
    dim_font_size: str | None = None
    dim_spacing_size: str | None = None
    font_family_body: str | None = None
    font_family_heading: str | None = None
    problems: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def __bool__(self) -> bool:
        return bool(self.to_properties())

    def to_properties(self) -> dict[str, str]:
        """Return the values by CSS custom property, such as ``--smart-color-text``."""
        values = {name: getattr(self, name) for name in _NAMES}
        return {
            f"--smart-{name.replace('_', '-')}": value
            for name, value in values.items()
            if value is not None
        }

    def to_css(self) -> str:
        """Return a style sheet with the custom properties; empty if there are none."""
        declarations = "".join(
            f"{name}:{value};" for name, value in self.to_properties().items()
        )
        return f":root{{{declarations}}}" if declarations else ""


_NAMES = tuple(each.name for each in fields(SMARTStyle) if each.name != "problems")


def parse_style(body: bytes) -> SMARTStyle:
    """
    Read the document at ``smart_style_url``.

    Does not raise: invalid values are omitted and listed in ``problems``.

    Spec: SMART App Launch 2.2, "Scopes and Launch Context", Styling (RESP-15).
    """
    try:
        document = parse_json_object(body, error=SMARTError, what="style")
    except SMARTError as exc:
        return SMARTStyle(problems=(str(exc),))
    values: dict[str, str] = {}
    problems = []
    for name in _NAMES:
        value = document.get(name)
        if value is None or value == "":
            continue
        safe = _read(name, value) if isinstance(value, str) else None
        if safe is None:
            problems.append(f"{name} is not a valid value")
        else:
            values[name] = safe
    return SMARTStyle(**values, problems=tuple(problems))


def _read(name: str, value: str) -> str | None:
    # The specification's own example has a semicolon after a value.
    text = value.strip(" ").removesuffix(";").rstrip(" ")
    if name.startswith("color_"):
        return _read_color(text.lower())
    if name.startswith("dim_"):
        return _read_dimension(name, text.lower())
    families = [_read_family(each.strip(" ")) for each in text.split(",")]
    if len(families) > _MAX_FONTS or None in families:
        return None
    return ", ".join(each for each in families if each)


def _read_color(text: str) -> str | None:
    return text if text in _COLOR_NAMES or _COLOR.fullmatch(text) else None


def _read_dimension(name: str, text: str) -> str | None:
    match = _DIMENSION.fullmatch(text)
    if match is None:
        return None
    pixels = float(match[1]) * _UNITS[match[2]] if match[1] else 0.0
    least, most = _FONT_SIZES if name == "dim_font_size" else (0.0, _MAX_DIMENSION)
    return text if least <= pixels <= most else None


def _read_family(text: str) -> str | None:
    """Return one name of a font list, quoted if necessary."""
    quoted = _QUOTED_FONT_NAME.fullmatch(text)
    if quoted:
        return f'"{quoted[2]}"'
    words = text.split(" ")
    if not all(_FONT_NAME.fullmatch(word) for word in words) or len(text) > 64:
        return None
    if len(words) > 1:
        return f'"{text}"'
    return None if text.lower() in _KEYWORDS else text
