"""A stand-in of S3 on this machine: the real client talks to it over HTTP, and it can fail."""

import atexit
import contextlib
import functools
import http.client
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import conftest
import pytest

from otseg_jax import buckets

BUCKET = "s3://bucket"


class Failing:
    """Passes requests on, but those that it is told to refuse; remembers all of them."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.asked = list[str]()
        self.refuse: Callable[[str], bool] = lambda asked: False

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        asked = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        self.asked.append(asked)
        if self.refuse(asked):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return [b""]
        return self.app(environ, start_response)

    def number(self, method: str) -> int:
        """Requests of a method so far."""
        return sum(asked.startswith(method) for asked in self.asked)


@functools.cache
def started() -> tuple[Failing, int]:
    """The server of this process, and its port: clients are kept, and each has an address."""
    try:
        import s3fs
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server
    except ImportError:
        conftest.missing("moto and s3fs (pip install -e '.[test]')")
    failing = Failing(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, failing, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    atexit.register(server.server_close)
    s3fs.S3FileSystem.retries = 1
    return failing, server.server_port


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[Failing]:
    """A server with one empty bucket that this process's s3fs talks to; copies lie in a folder."""
    failing, port = started()
    failing.refuse = lambda asked: False
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for method, path in (("POST", "/moto-api/reset"), ("PUT", "/bucket")):
        connection.request(method, path)
        connection.getresponse().read()
    connection.close()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            buckets.HOME: str(folder),
        }.items():
            patch.setenv(name, value)
        patch.setattr(buckets, "WAITS", (0.01,) * 4)
        yield failing
