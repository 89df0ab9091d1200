"""Which of the site's addresses are pages."""

from __future__ import annotations

from fastapi import FastAPI

__all__ = ["pages_of"]

BESIDE = ("/api/", "/clips/")  # and files, which have a dot in their name


def pages_of(app: FastAPI) -> list[str]:
    """The patterns, as ``/board/{scope}``, of all that answers to GET with something to read."""
    return [
        path
        for path, methods in app.openapi()["paths"].items()
        if "get" in methods and not path.startswith(BESIDE) and "." not in path
    ]
