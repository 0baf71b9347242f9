"""The form that sends an authorization request by POST."""

from __future__ import annotations

from html.parser import HTMLParser


class Form(HTMLParser):
    """The form of a page, and what a strict policy forbids in it."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.action = self.method = ""
        self.inputs: list[tuple[str, str]] = []
        self.buttons = 0
        self.inline: list[str] = []
        self.scripts: list[str] = []
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.inline += [name for name in values if name.startswith("on")]
        if "style" in values or tag == "style":
            self.inline.append(tag)
        if tag == "form":
            self.action, self.method = values["action"], values["method"]
        elif tag == "input":
            assert values["type"] == "hidden"
            self.inputs.append((values["name"], values["value"]))
        elif tag == "button":
            self.buttons += 1
        elif tag == "script":
            self.scripts.append(values.get("src", "inline"))
