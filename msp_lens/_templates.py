"""HTML from the package's jinja templates, with every value escaped unless its template marks it safe."""

from __future__ import annotations

from typing import Any

import jinja2


def render_template(package: str, name: str, **values: Any) -> str:
    """The template `name` in the `templates` folder of a package, filled in; a missing value is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Text written in Python has straight apostrophes.
    environment.filters["curly"] = lambda text: text.replace("'", "’")
    return environment.get_template(name).render(**values)
