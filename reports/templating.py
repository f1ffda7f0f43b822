"""How templates are read: for the page, the note and the picture alike."""

import jinja2


def templates(escaping: bool = True) -> jinja2.Environment:
    """Return a new environment of this package's templates, to be filled with what they use.

    Args:
        escaping: texts for HTML and SVG; not so where the template makes neither.
    """
    return jinja2.Environment(
        loader=jinja2.PackageLoader("reports"),
        autoescape=escaping,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
