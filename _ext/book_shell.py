"""What does this book need from Sphinx that Jupyter Book does not give?

The role {assumed} (a definition or a hypothetical value, so that the number lint lets it
pass), the line of minutes under a chapter title, repository buttons that appear once
`repository.url` in _config.yml is set, and pages that name no address on a CDN.
"""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx

MINUTES = (
    ("minutes_read", "to read"),
    ("minutes_run", "to run the lab"),
    ("minutes_instructor", "to teach"),
)


def assumed_role(name, rawtext, text, lineno, inliner, options=None, content=None):
    """Plain text; the source says that the value is assumed, not measured."""
    return [nodes.inline(rawtext, text, classes=["assumed"])], []


def set_repository_buttons(app: Sphinx, config) -> None:
    """Source, edit and issue buttons, only when the book has an address."""
    options = config.html_theme_options
    has_address = bool(options.get("repository_url"))
    for button in ("repository", "edit_page", "issues"):
        options[f"use_{button}_button"] = has_address


def drop_thebe(app: Sphinx, pagename, templatename, context, doctree) -> None:
    """Live cells are off in this book, so no page may carry the loader or its CDN address."""
    files = context.get("script_files", [])

    def is_thebe(script) -> bool:
        attributes = getattr(script, "attributes", {})
        return "thebe" in f"{getattr(script, 'filename', script)} {attributes.get('body', '')}"

    context["script_files"] = [script for script in files if not is_thebe(script)]


def add_minutes(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """`20 min to read · 4 min to run the lab · 45 min to teach` under a chapter title."""
    meta = app.env.metadata.get(docname, {})
    parts = [f"{meta[key]} min {verb}" for key, verb in MINUTES if key in meta]
    title = next(iter(doctree.findall(nodes.title)), None)
    if not parts or title is None:
        return
    line = nodes.paragraph("", " · ".join(parts), classes=["chapter-minutes"])
    title.parent.insert(title.parent.index(title) + 1, line)


def setup(app: Sphinx) -> dict:
    app.add_role("assumed", assumed_role)
    app.connect("config-inited", set_repository_buttons, priority=100)
    app.connect("doctree-resolved", add_minutes)
    app.connect("html-page-context", drop_thebe, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
