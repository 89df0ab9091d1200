"""`/metrics` and `/healthz` over HTTP for Prometheus, on the loopback address only."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from robot_stack.errors import PolicyError

__all__ = ["MetricsPage"]


class MetricsPage:
    """Serves from a thread of its own: a slow reader holds up nobody but itself."""

    def __init__(
        self, port: int, metrics: Callable[[], str], health: Callable[[], dict[str, Any]]
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 5.0

            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._send(200, "text/plain; version=0.0.4; charset=utf-8", metrics())
                elif self.path == "/healthz":
                    state = health()
                    text = json.dumps(state) + "\n"
                    self._send(200 if state["ready"] else 503, "application/json", text)
                else:
                    self._send(404, "text/plain", "/metrics or /healthz\n")

            def _send(self, status: int, kind: str, text: str) -> None:
                data = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Scrapes come every few seconds: not worth a line each."""

        try:
            self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        except OSError as error:
            raise PolicyError(
                f"cannot show metrics at 127.0.0.1:{port}: {error}; choose another --metrics-port",
                "bad_endpoint",
            ) from error
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics-page", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
