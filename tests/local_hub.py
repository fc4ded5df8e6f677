"""A hub on this machine, that answers huggingface_hub as huggingface.co does."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMITS = {"main": "a" * 40, "v1": "b" * 40, "a" * 40: "a" * 40, "b" * 40: "b" * 40}


def handler(folders, asked, commits=COMMITS):
    """Answers for the model ``acme/tiny``, whose files at each commit are in ``folders``.

    Args:
        folders: by commit.
        asked: is appended every path that is asked for.
        commits: by the names of revisions, and of themselves.
    """

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            asked.append(self.path)

        def answer(self, code, body=b"", **headers):
            self.send_response(code)
            for name, value in {"Content-Length": len(body), **headers}.items():
                self.send_header(name.replace("_", "-"), str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            parts = self.path.split("?")[0].strip("/").split("/")
            if parts[0] == "api":
                self.describe(parts[2:4], parts[5] if len(parts) > 5 else "main", "tree" in parts)
            elif parts[:2] == ["acme", "tiny"] and parts[2] == "resolve":
                self.file(parts[3], parts[-1])
            else:
                self.answer(404, X_Error_Code="RepoNotFound")

        do_HEAD = do_GET

        def describe(self, name, revision, tree):
            if name != ["acme", "tiny"]:
                return self.answer(404, X_Error_Code="RepoNotFound")
            if revision not in commits:
                return self.answer(404, X_Error_Code="RevisionNotFound")
            files = sorted(folders[commits[revision]].iterdir())
            if tree:
                listed = [
                    {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in files
                ]
                return self.answer(200, json.dumps(listed).encode())
            siblings = [{"rfilename": file.name} for file in files]
            about = {
                "id": "acme/tiny",
                "sha": commits[revision],
                "siblings": siblings,
                "tags": [],
                "private": False,
            }
            return self.answer(200, json.dumps(about).encode())

        def file(self, revision, name):
            path = folders[commits[revision]] / name
            if not path.is_file():
                return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commits[revision])
            body = path.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()}"'
            return self.answer(200, body, ETag=tag, X_Repo_Commit=commits[revision])

    return Hub


@contextmanager
def serving(folders, asked, commits=COMMITS):
    """Runs a hub; its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(folders, asked, commits))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
