"""A hub on this machine: what huggingface_hub needs to create, upload, commit and download, over real HTTP, and faults on demand."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_right"
LARGE = (".safetensors", ".gguf")


@dataclass
class FakeHub:
    """Its repositories, stored objects, and what was asked of it."""

    url: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # LFS, by SHA-256
    commits: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # "owner/name@branch" → {files}
    uploads: list[str] = field(default_factory=list)
    break_after: int | None = None  # uploads of large files until the connection breaks

    def files(self, repository: str, branch: str = "main") -> dict[str, bytes]:
        """The newest commit's files."""
        commits = self.commits.get(f"{repository}@{branch}")
        found: dict[str, bytes] = commits[-1]["files"] if commits else {}
        return found


class Handler(BaseHTTPRequestHandler):
    """One request."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def answer(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def allowed(self) -> bool:
        if self.headers.get("Authorization") in (f"Bearer {TOKEN}", "Bearer hf_reader"):
            return True
        self.answer(401, {"error": "Invalid username or password."})
        return False

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_PUT(self) -> None:
        data, oid = self.body(), self.path.rsplit("/", 1)[1]
        if self.hub.break_after is not None:
            if self.hub.break_after == 0:
                self.answer(400, {"error": "the connection broke"})
                return
            self.hub.break_after -= 1
        assert hashlib.sha256(data).hexdigest() == oid
        self.hub.objects[oid] = data
        self.hub.uploads.append(oid)
        self.answer(200)

    def do_POST(self) -> None:
        data = self.body()
        if not self.allowed():
            return
        if self.path == "/api/repos/create":
            asked = json.loads(data)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if self.headers["Authorization"] == "Bearer hf_reader":
                self.answer(403, {"error": "You don't have the rights to create a model"})
                return
            known = name in self.hub.private
            self.hub.private.setdefault(name, asked.get("visibility") == "private" or bool(asked.get("private")))
            self.answer(409 if known else 200, {"url": f"{self.hub.url}/{name}", "id": name})
        elif match := re.match(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", self.path):
            files = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(data)["files"]
            ]
            self.answer(200, {"files": files})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {"oid": o["oid"], "size": o["size"]}
                | (
                    {}
                    if o["oid"] in self.hub.objects
                    else {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{o['oid']}"}}}
                )
                for o in json.loads(data)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})
        elif match := re.match(r"/api/models/([^/]+/[^/]+)/branch/(.+)", self.path):
            self.hub.commits.setdefault(f"{match[1]}@{match[2]}", [])
            self.answer(200)
        elif match := re.match(r"/api/models/([^/]+/[^/]+)/commit/([^?]+)", self.path):
            self.commit(match[1], match[2], data)
        else:
            self.answer(404, {"error": self.path})

    def commit(self, repository: str, branch: str, data: bytes) -> None:
        files = dict(self.hub.files(repository, branch))
        for line in map(json.loads, data.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        sha = hashlib.sha1(repr(sorted(files)).encode() + str(len(self.hub.commits)).encode()).hexdigest()
        self.hub.commits.setdefault(f"{repository}@{branch}", []).append({"files": files, "sha": sha})
        self.answer(200, {"commitUrl": f"{self.hub.url}/{repository}/commit/{sha}", "commitOid": sha})

    def do_GET(self) -> None:
        if not self.allowed():
            return
        if match := re.match(r"/api/models/([^/]+/[^/?]+)(?:/revision/([^?]+))?(?:\?.*)?$", self.path):
            commits = self.hub.commits.get(f"{match[1]}@{match[2] or 'main'}")
            if not commits:
                self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
                return
            siblings = [{"rfilename": name} for name in commits[-1]["files"]]
            self.answer(200, {"id": match[1], "sha": commits[-1]["sha"], "siblings": siblings, "private": True})
        elif match := re.match(r"/api/models/([^/]+/[^/]+)/tree/([^?]+)", self.path):
            files = self.at(match[1], match[2])
            tree = [
                {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for n, d in files.items()
            ]
            self.answer(200, json.dumps(tree).encode())
        elif match := re.match(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
            data = self.at(match[1], match[2]).get(match[3])
            if data is None:
                self.answer(404, {"error": "no such entry"}, {"X-Error-Code": "EntryNotFound"})
                return
            etag = hashlib.sha256(data).hexdigest()
            self.answer(
                200, data, {"X-Repo-Commit": match[2], "ETag": f'"{etag}"', "Content-Type": "application/octet-stream"}
            )
        else:
            self.answer(404, {"error": self.path})

    def at(self, repository: str, revision: str) -> dict[str, bytes]:
        """The files of a commit or a branch."""
        commits = [commit for found in self.hub.commits.values() for commit in found if commit["sha"] == revision]
        files: dict[str, bytes] = commits[-1]["files"] if commits else self.hub.files(repository, revision)
        return files

    do_HEAD = do_GET


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub on a free port until the end of the block."""
    hub = FakeHub()
    handler = type("Bound", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
