"""A stand-in of the Hugging Face hub on this machine: the real client talks to it over HTTP.

It keeps repositories in memory, knows tokens and what they may do, checks licences, takes small
files in a commit and others by LFS, and remembers what was asked of it.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants

SHA = "0123456789abcdef0123456789abcdef01234567"
LICENCES = ("apache-2.0", "mit", "other")
LARGE = 100_000  # bytes; from there on a file goes by LFS
WRITE, READ = "hf_write", "hf_read"  # tokens of "someone", who is in the group "lab"


class Hub:
    """What the server holds and was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.fetched: list[str] = []  # files, in order
        self.large: dict[str, bytes] = {}  # by SHA-256
        self.broken = ""  # a part of the paths that the server fails at
        self.address = ""


class Handler(BaseHTTPRequestHandler):
    """Answers of the server."""

    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, value=None, *, status=200, body=b"", **headers):
        body = body if value is None else json.dumps(value).encode()
        self.send_response(status)
        for name, content in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(content))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def do_GET(self):
        path, token = urlsplit(self.path).path, self.token()
        if self.hub.broken and self.hub.broken in path:
            return self.answer({"error": "broken"}, status=500)
        if path == "/api/whoami-v2":
            if token not in (WRITE, READ):
                return self.answer({"error": "Invalid token"}, status=401)
            role = "write" if token == WRITE else "read"
            auth = {"accessToken": {"role": role}}
            return self.answer({"name": "someone", "orgs": [{"name": "lab"}], "auth": auth})
        match = re.match(r"/(?:api/models/)?([\w.-]+/[\w.-]+)", path)
        files = self.hub.repositories.get(match[1]) if match else None
        if files is None or (match[1] in self.hub.private and token is None):
            return self.answer(
                {"error": "Repository not found"}, status=404, X_Error_Code="RepoNotFound"
            )
        if "/resolve/" in path:
            name = path.partition("/resolve/")[2].partition("/")[2]
            if name not in files:
                return self.answer({"error": "no"}, status=404, X_Error_Code="EntryNotFound")
            if self.command == "GET":
                self.hub.fetched.append(name)
            etag = hashlib.sha256(files[name]).hexdigest()
            return self.answer(body=files[name], ETag=f'"{etag}"', X_Repo_Commit=SHA)
        if "/tree/" in path:
            kind = {"type": "file", "oid": "0"}
            return self.answer([{**kind, "path": n, "size": len(b)} for n, b in files.items()])
        listing = [{"rfilename": name} for name in files]
        return self.answer({"id": match[1], "sha": SHA, "siblings": listing})

    do_HEAD = do_GET

    def do_PUT(self):
        body = self.read()
        self.hub.large[hashlib.sha256(body).hexdigest()] = body
        self.answer()

    def do_POST(self):
        body, path = self.read(), urlsplit(self.path).path
        if self.hub.broken and self.hub.broken in path:
            return self.answer({"error": "broken"}, status=500)
        if path == "/api/validate-yaml":
            return self.validate(json.loads(body)["content"])
        if self.token() != WRITE:
            return self.answer({"error": "no"}, status=403, X_Error_Message="You need to write")
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        name = re.match(r"/(?:api/models/)?([\w.-]+/[\w.-]+?)(?:\.git)?/", path)[1]
        if "/preupload/" in path:
            return self.answer({"files": [self.mode(f) for f in json.loads(body)["files"]]})
        if path.endswith("/info/lfs/objects/batch"):
            upload = {"upload": {"href": f"{self.hub.address}/lfs"}}
            objects = json.loads(body)["objects"]
            return self.answer(
                {"transfer": "basic", "objects": [{**o, "actions": upload} for o in objects]}
            )
        assert "/commit/" in path, path
        return self.commit(name, [json.loads(line) for line in body.splitlines()])

    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def validate(self, card: str):
        told = re.search(r"^license: (.*)$", card, re.MULTILINE)
        if told and told[1] not in LICENCES:
            wrong = f'"license" must be one of {LICENCES}'
            return self.answer({"errors": [{"message": wrong}], "warnings": []}, status=400)
        return self.answer({"errors": [], "warnings": []})

    def create(self, asked: dict):
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] not in ("someone", "lab"):
            return self.answer({"error": "no"}, status=403, X_Error_Message="Not yours")
        url = f"{self.hub.address}/{name}"
        if name in self.hub.repositories:
            return self.answer({"error": "exists", "url": url}, status=409)
        self.hub.repositories[name] = {}
        if asked.get("visibility") == "private" or asked.get("private"):
            self.hub.private.add(name)
        return self.answer({"url": url, "name": name})

    @staticmethod
    def mode(file: dict) -> dict:
        how = "lfs" if file["size"] >= LARGE else "regular"
        return {"path": file["path"], "uploadMode": how, "shouldIgnore": False}

    def commit(self, name: str, entries: list[dict]):
        new = {}
        for entry in entries:
            value = entry["value"]
            if entry["key"] == "file":
                new[value["path"]] = base64.b64decode(value["content"])
            if entry["key"] == "lfsFile":
                new[value["path"]] = self.hub.large[value["oid"]]
        self.hub.repositories[name].update(new)
        address = f"{self.hub.address}/{name}/commit/{SHA}"
        self.answer({"commitUrl": address, "commitOid": SHA, "success": True})


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """A hub while the block runs; HF_ENDPOINT of a process that is started names its address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def at_hand(folder: Path, token: str | None = WRITE) -> Iterator[Hub]:
    """A hub that this process's client talks to, logged in, with its cache in a folder."""
    with serve() as hub, pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # the client's own, where it sends large files
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
        # the variables are read when the library is imported
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "ENDPOINT", hub.address)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.delenv("HF_TOKEN", raising=False)
        if token is not None:
            patch.setenv("HF_TOKEN", token)
        yield hub
