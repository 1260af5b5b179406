"""Formulae in MathML, which browsers draw without a script."""

import html
import re

import latex2mathml.converter

_MARKED = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">'
    r"\\[(\[](?P<tex>.+?)\\[)\]]</(?P=tag)>",
    re.DOTALL,
)


def on_page_content(text, **page):
    """Replaces what `pymdownx.arithmatex` has marked; called by MkDocs."""
    return _MARKED.sub(_mathml, text)


def _mathml(match):
    display = "block" if match["tag"] == "div" else "inline"
    tex = html.unescape(match["tex"])
    return latex2mathml.converter.convert(tex, display=display)
