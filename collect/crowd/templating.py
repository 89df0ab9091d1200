"""Pages from Jinja2 templates: escaped always, a missing value is an error, no inline script.

    return render(request, "tasks.html", tasks=tasks)

A template has `t("key", **values)`, `csrf_field()` for every form, `csrf_token` for scripts (in a
`data-csrf` attribute), `who`, `me` (the participant or None), `kiosk`, `staff`, `language`,
`languages`, `texts_of(language)` (another language's `t`), `config`, `path`, `here` (where to come
back to this page), `shows("rewards")` (or badges, board: what the reader's incentive arm is about)
and `idle_s` (after how many seconds a participant at a kiosk is signed out; None for others).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse

from collect.crowd.config import CrowdConfig
from collect.crowd.experiment import shows
from collect.crowd.i18n import choose_language, translator
from collect.crowd.security.csrf import FIELD, csrf_token
from collect.crowd.security.redirects import local_path
from collect.crowd.security.sessions import Who
from collect.crowd.site import site_of

__all__ = ["environment", "render"]

TEMPLATES = Path(__file__).parent / "templates"


@functools.cache
def environment() -> Environment:
    """The one Jinja2 environment of the site."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """The page ``template`` below ``templates/`` as a response."""
    who: Who = getattr(request.state, "who", None) or Who()
    config = site_of(request).config
    language = choose_language(request, who.participant)
    token = csrf_token(request, who)
    page = (
        environment()
        .get_template(template)
        .render(
            {
                "t": translator(language),
                "language": language,
                "languages": config.languages,
                "texts_of": translator,
                "shows": functools.partial(shows, who.participant),
                "idle_s": _idle_s(who, config),
                "config": config,
                "path": request.url.path,
                "here": _here(request),
                "who": who,
                "me": who.participant,
                "kiosk": who.kiosk,
                "staff": who.staff,
                "csrf_token": token,
                "csrf_field": functools.partial(_field, token),
                **values,
            }
        )
    )
    return HTMLResponse(page, status_code=status)


def _here(request: Request) -> str:
    """Where this page can be asked for again. What a form is answered with is not at the address of
    the form: the page that its section begins with is."""
    path = request.url.path
    if request.method != "GET":
        return local_path("/" + path.split("/")[1])
    return local_path(f"{path}?{request.url.query}".removesuffix("?"), local_path(path))


def _idle_s(who: Who, config: CrowdConfig) -> int | None:
    session = who.sessions.get("participant")
    if session is None or session.station_id is None:
        return None
    return int(config.sessions.kiosk_idle_s)


def _field(token: str) -> Markup:
    return Markup('<input type="hidden" name="{}" value="{}">').format(FIELD, token)
