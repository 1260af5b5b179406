"""Cards: what a run, a study or an export is, as a README.md beside it."""

import json

import jinja2


def render(name, **facts):
    """Returns the text of a card.

    Args:
        name: str, of the template in this folder: "run", "study" or "export".
        **facts: what it tells.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("keras_transfer", "cards"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
    )
    # What JSON takes for a string, YAML does too.
    environment.filters["quoted"] = json.dumps
    return environment.get_template(f"{name}.md.jinja").render(**facts)
