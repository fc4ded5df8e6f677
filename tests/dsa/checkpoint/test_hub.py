"""A hub on this machine: models come at one commit, weights and all, and what is missing is said."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

COMMITS = {"main": "a" * 40, "v1": "b" * 40, "a" * 40: "a" * 40, "b" * 40: "b" * 40}


def handler(folders, asked):
    """Answers for the model ``acme/tiny``, whose files at each commit are in ``folders``."""

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
            if revision not in COMMITS:
                return self.answer(404, X_Error_Code="RevisionNotFound")
            files = sorted(folders[COMMITS[revision]].iterdir())
            if tree:
                listed = [
                    {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in files
                ]
                return self.answer(200, json.dumps(listed).encode())
            siblings = [{"rfilename": file.name} for file in files]
            about = {
                "id": "acme/tiny",
                "sha": COMMITS[revision],
                "siblings": siblings,
                "tags": [],
                "private": False,
            }
            return self.answer(200, json.dumps(about).encode())

        def file(self, revision, name):
            path = folders[COMMITS[revision]] / name
            if not path.is_file():
                return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMITS[revision])
            body = path.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()}"'
            return self.answer(200, body, ETag=tag, X_Repo_Commit=COMMITS[revision])

    return Hub


@pytest.fixture(scope="module")
def hub(checkpoints):
    """A running hub: its address, and what it was asked for."""
    asked = []
    folders = {"a" * 40: checkpoints["glm_moe_dsa"], "b" * 40: checkpoints["eight"]}
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(folders, asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(hub, tmp_path):
    """Runs the command line against the hub with an empty cache."""

    def run(*arguments, **changes):
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub[0],
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
        }
        environment |= {"NO_PROXY": "127.0.0.1", **changes}
        command = [sys.executable, "-m", "indexcache.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    return run


def test_a_hub_model_is_searched_at_the_commit_that_was_asked_for(run, hub, text_file, tmp_path):
    arguments = ["--model", "acme/tiny", "--revision", "v1", "--dataset", text_file, "--keep", 0.5, "--window", 48]
    done = run("search", *arguments, "--windows", 2, "--heldout", 2, "--out", tmp_path / "run", "--json", "-q")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["model"]["revision"] == "b" * 40
    assert plan["model"]["layers"] == 8, "the files of another commit were read"
    assert not any("/resolve/main/" in path or "a" * 40 in path for path in hub[1])
    # What is in the cache is enough from then on.
    again = run("eval", tmp_path / "run", "--json", "-q", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["plan"] == plan["heldout"]["plan"]


@pytest.mark.parametrize(
    ("model", "revision", "says"),
    [("acme/other", "main", "neither a local folder nor on the hub"), ("acme/tiny", "v9", "no revision 'v9'")],
)
def test_what_the_hub_does_not_have_is_one_line(run, model, revision, says):
    done = run("inspect", model, "--revision", revision)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert says in done.stderr


def test_a_hub_out_of_reach_is_one_line(run):
    done = run("inspect", "acme/tiny", HF_ENDPOINT="http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "reachable" in done.stderr
