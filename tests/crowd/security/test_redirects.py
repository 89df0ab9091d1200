"""No page of ours sends anybody to another site, whatever its parameters say.

CTFd 3.8.4 and 3.8.5: open redirects. The corpus goes into every parameter of every route.
"""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit

from tests.crowd.security.conftest import ORIGIN, World

DATABASES = ["sqlite"]
EVIL = (
    "https://evil.test",
    "//evil.test",
    "///evil.test",
    "////evil.test/%2f..",
    "/\\evil.test",
    "\\\\evil.test",
    "/\t/evil.test",
    "\t//evil.test",
    "/\n/evil.test",
    "/\r\nLocation: https://evil.test",
    "/%0d%0aSet-Cookie:x=y",
    "https:evil.test",
    "https:/evil.test",
    "HtTpS://evil.test",
    "javascript:alert(1)",
    "data:text/html,x",
    "//crowd.test@evil.test",
    "//crowd.test.evil.test",
    "https://crowd.test:evil.test@evil.test",
    "/..//evil.test",
    "/./\\evil.test",
    "/tasks/..//evil.test",
    "/%2f/evil.test",
    "/%5cevil.test",
    "\u2215\u2215evil.test",
    "/\uff0f/evil.test",
    "/\u200b/evil.test",
    "//\u3002evil.test",
    "?next=//evil.test",
    "#//evil.test",
    ".evil.test",
    "@evil.test",
)
LIKE_NEXT = {"next", "refused", "problem", "left", "done", "took", "link", "why", "then", "page"}


def _stays(location: str) -> bool:
    there = urlsplit(urljoin(ORIGIN + "/signin/", location.replace("\\", "/")))
    return (
        f"{there.scheme}://{there.netloc}" == ORIGIN
        and location.startswith("/")
        and not location.startswith("//")
        and not set(location) & set("\\\r\n\t\0")
    )


def test_no_redirect_leaves_the_site(world: World) -> None:
    """Every text parameter of every route that has a name of this kind, and the whole corpus for
    the one that names a page."""
    spec = world.app.openapi()
    found = 0
    wrong = []
    for path, item in spec["paths"].items():
        for method, operation in item.items():
            names = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "query"}
            form = operation.get("requestBody", {}).get("content", {})
            for content in form.values():
                reference = content["schema"].get("$ref", "").rpartition("/")[2]
                fields = spec["components"]["schemas"].get(reference, {})
                names |= set(fields.get("properties", {}))
            asked = sorted(names & LIKE_NEXT)
            if not asked or (path.startswith("/staff/") and method == "get"):
                continue
            found += 1
            role = "kiosk" if "signin" in path else "participant"
            actor = world.as_(role)
            whole = "next" in asked
            for evil in EVIL if whole else EVIL[:8]:
                values = dict.fromkeys(asked, evil) | {"language": "de"}
                if method == "get":
                    answer = actor.get(path, params=values)
                else:
                    answer = actor.post(path, data=values)
                where = answer.headers.get("location", "/")
                if not _stays(where):
                    wrong.append(f"{method} {path} {values}: {where!r}")
                if "x" in answer.cookies or "evil" in where:
                    wrong.append(f"{method} {path} {values}: {where!r}")
    assert found >= 6
    assert not wrong, "\n".join(wrong)


def test_a_path_is_no_redirect_either(world: World) -> None:
    """Slashes that are added, doubled or encoded are answered, or not found; never sent on."""
    nobody = world.as_("nobody")
    for path in ("//evil.test", "//evil.test/..", "/\\evil.test", "/board/", "/static//evil.test"):
        answer = nobody.client.request("GET", ORIGIN + path)
        where = answer.headers.get("location")
        assert where is None or urlsplit(urljoin(ORIGIN, where)).netloc == "crowd.test", path
    forged = {"x-forwarded-host": "evil.test", "forwarded": "host=evil.test"}
    answer = nobody.get("/board/", headers=forged)
    assert "evil" not in answer.headers.get("location", "") and "evil" not in answer.text


def test_links_that_the_site_makes_are_of_its_own_name(world: World) -> None:
    """The QR codes hold the settings' origin, whatever Host or proxy headers say."""
    kiosk = world.as_("kiosk")
    page = kiosk.post("/signin/phone/link", headers={"x-forwarded-host": "evil.test"})
    assert page.status_code == 200 and "evil" not in page.text
    code = world.as_("admin").post(
        "/staff/stations/code",
        data={"name": "here", "kind": "kiosk"},
        headers={"x-forwarded-host": "evil.test"},
    )
    assert code.status_code == 200 and "evil" not in code.text
