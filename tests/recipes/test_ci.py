"""recipes/ci: the shell form runs as it stands on the embedded model, and the YAML forms run the same steps."""

import json
import os
import re
import shutil
import subprocess

import pytest
import yaml
from random_models import EMBEDDED, ROOT

from indexcache.commands.verify import VerifyOutcome

CI = ROOT / "recipes" / "ci"
STEPS = ["verify", "price", "search", "gate", "render", "publish"]
# In the place of the program: hands its words to this process, where the libraries are loaded already.
PROGRAM = """#!/bin/sh
for word; do printf '%s\\n' "$word"; done > "$PIPES/asked"
cat "$PIPES/out"
cat "$PIPES/err" >&2
exit "$(cat "$PIPES/code")"
"""
SMALL = {"WINDOW": "96", "WINDOWS": "1", "HELDOUT": "1", "KEEP": "0.93", "GATE": "estimate", "MAX_DELTA": "1"}


@pytest.fixture
def refresh(run_cli, tmp_path, monkeypatch):
    """Runs lines of shell in a folder with ci/refresh.sh; what was asked of indexcache is in ``refresh.asked``."""
    folder, programs = tmp_path / "repository", tmp_path / "programs"
    (folder / "ci").mkdir(parents=True)
    programs.mkdir()
    shutil.copy(CI / "refresh.sh", folder / "ci" / "refresh.sh")
    for name, text in {"indexcache": PROGRAM, "hf": '#!/bin/sh\necho "$@" > uploaded\n'}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.chdir(folder)
    for name in ("asked", "out", "err", "code"):
        os.mkfifo(tmp_path / name)
    asked = []

    def answer():
        """Runs what the script asks for until it closes the pipe for good."""
        words = (tmp_path / "asked").read_text().splitlines()
        if words == ["done"]:
            return False
        asked.append(words)
        code, out, err = run_cli(*words)
        for name, text in (("out", out), ("err", err), ("code", str(code))):
            (tmp_path / name).write_text(text)
        return True

    def run(line, **settings):
        environment = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PIPES": str(tmp_path)}
        shell = f"{line}\nended=$?\necho done > {tmp_path}/asked\nexit $ended"
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(["sh", "-c", shell], env=environment | settings, **streams) as process:
            while answer():
                pass
            out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    run.asked, run.folder = asked, folder
    return run


def test_the_first_plan_is_searched_gated_rendered_and_published(refresh, monkeypatch):
    settings = {"MODEL": str(EMBEDDED), "DATASET": str(EMBEDDED / "calibration.jsonl"), **SMALL}
    code, out, err = refresh("sh ci/refresh.sh all", **settings, PUBLISH_REPO="acme/plan", SUMMARY="summary.md")
    assert code == 0, out + err
    assert [words[0] for words in refresh.asked] == ["estimate", "search", "eval", "report"]
    public = {path.name for path in (refresh.folder / "public").iterdir()}
    assert {"plan.json", "windows.safetensors", "report.html", "report.md", "curve.svg", "README.md"} <= public
    plan = json.loads((refresh.folder / "public" / "plan.json").read_text())
    assert plan["result"]["kept"] == 15
    assert (refresh.folder / "public" / "README.md").read_text().startswith("---\nlibrary_name: indexcache")
    assert "indexcache plan for" in (refresh.folder / "summary.md").read_text()
    uploaded = (refresh.folder / "uploaded").read_text()
    assert uploaded == f"upload acme/plan public . --commit-message Plan for {EMBEDDED}\n"
    # The same checkpoint once more: the plan holds, and nothing else is asked for.
    refresh.asked.clear()
    code, out, err = refresh("sh ci/refresh.sh all", **settings, PLAN="public", OUT="outputs/again", TOLERANCE="1")
    assert code == 0, out + err
    assert [words[0] for words in refresh.asked] == ["verify"]
    assert "the plan holds, nothing to publish" in out
    # And where it does not hold, a search starts from it, and is too dear here.
    refresh.asked.clear()
    monkeypatch.setattr(VerifyOutcome, "reasons", property(lambda outcome: ["a test says so"]))
    dear = {**settings, "PLAN": "public", "MAX_HOURS": "0", "OUT": "outputs/third"}
    code, out, err = refresh("sh ci/refresh.sh dry-run", **dear)
    holds = json.loads((refresh.folder / "outputs" / "third" / "verify.json").read_text())["holds"]
    assert (code, holds) == (1, False), out + err
    assert [words[0] for words in refresh.asked] == ["verify", "estimate"]
    assert "--init" in refresh.asked[1]
    assert "raise MAX_HOURS" in err


@pytest.mark.parametrize(
    ("line", "settings", "says"),
    [
        ("sh ci/refresh.sh all", {}, "MODEL"),
        ("sh ci/refresh.sh", {"MODEL": "m"}, "usage: "),
        ("sh ci/refresh.sh search", {"MODEL": "m"}, "run the step verify first"),
    ],
)
def test_what_is_missing_is_said(refresh, line, settings, says):
    code, out, err = refresh(line, **settings)
    assert (code, out, refresh.asked) == (2, "", [])
    assert says in err


def lines_of(name):
    """The shell lines of a YAML form, in the order in which they run."""
    document = yaml.safe_load((CI / name).read_text("utf-8"))
    if name == "github.yml":
        return [step["run"] for job in document["jobs"].values() for step in job["steps"] if "run" in step]
    jobs = [job for job in document.values() if isinstance(job, dict) and "script" in job]
    assert [job["stage"] for job in jobs] == document["stages"]
    return [line for job in jobs for line in job["script"]]


@pytest.mark.parametrize("name", ["github.yml", "gitlab.yml"])
def test_the_yaml_forms_run_the_shell_forms_steps(name):
    lines = lines_of(name)
    assert all(line.startswith("python -m pip") or "sh ci/refresh.sh " in line for line in lines)
    assert [line.split()[-1] for line in lines if "refresh.sh" in line] == STEPS
    assert not [line for line in lines if "${{" in line], "what others wrote becomes code"


def test_every_setting_is_told_in_the_docs():
    settings = re.findall(r"^([A-Z_]+)=\$\{", (CI / "refresh.sh").read_text("utf-8"), re.MULTILINE)
    told = re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs" / "ci.md").read_text("utf-8"), re.MULTILINE)
    assert told == settings


def test_none_of_it_is_a_recipe(run_cli):
    code, _, err = run_cli("search", "--recipe", "github")
    assert (code, "no recipe" in err or "does not exist" in err) == (2, True), err
