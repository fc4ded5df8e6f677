"""diff, runs and env: the commands that need no model."""

import json
import shutil

from command_lines import lines
from filelock import FileLock

from indexcache.commands.environment import shown_variables
from indexcache.system.locking import LOCK_FILE


class TestDiff:
    def test_a_plan_is_like_itself(self, run_cli, searched):
        code, out, _ = run_cli("diff", searched, searched, "--fail-on-change", "--json")
        found = json.loads(out)
        assert (code, found["changed"], found["fields"]) == (0, False, {})
        assert {change["verdict"] for change in [found["heldout"], *found["budgets"]]} == {"same"}
        assert len(found["budgets"]) == 7

    def test_a_cut_changed_roles(self, run_cli, searched, tmp_path):
        folder = shutil.copytree(searched, tmp_path / "run")
        run_cli("cut", folder, "--keep", 0.25)
        code, out, _ = run_cli("diff", folder, folder / "plan-2of8.json")
        assert code == 0
        assert "2 of 8 roles changed: layers " in out
        assert "goal: keep 0.5 -> keep 0.25" in out
        code, out, err = run_cli("diff", folder, folder / "plan-2of8.json", "--fail-on-change", "--json")
        assert (code, json.loads(out)["changed"], len(lines(err))) == (1, True, 1)

    def test_without_journals_intervals_are_compared(self, run_cli, searched, tmp_path):
        folder = shutil.copytree(searched, tmp_path / "run")
        (folder / "journal.jsonl").unlink()
        _, out, _ = run_cli("diff", searched, folder, "--json")
        heldout = json.loads(out)["heldout"]
        assert (heldout["paired"], heldout["verdict"]) == (False, "noise")
        assert heldout["low"] < 0 < heldout["high"]

    def test_what_is_no_plan_is_one_line(self, run_cli, searched, tmp_path):
        code, out, err = run_cli("diff", searched, tmp_path / "none.json")
        assert (code, out, len(lines(err))) == (2, "", 1)


class TestRuns:
    def test_says_of_each_folder_what_it_is(self, run_cli, searched, tmp_path):
        shutil.copytree(searched, tmp_path / "a-finished")
        (tmp_path / "b-broken").mkdir()
        (tmp_path / "b-broken" / "plan.json").write_text("{")
        stopped = tmp_path / "below" / "c-stopped"
        stopped.mkdir(parents=True)
        content = (searched / "journal.jsonl").read_bytes().splitlines(keepends=True)
        (stopped / "journal.jsonl").write_bytes(b"".join(content[: len(content) // 2]))
        shutil.copytree(stopped, tmp_path / "d-running")
        (tmp_path / "e-damaged").mkdir()
        spoiled = [*content[:2], b"spoiled\n", *content[3:]]
        (tmp_path / "e-damaged" / "journal.jsonl").write_bytes(b"".join(spoiled))
        (tmp_path / "f-empty").mkdir()
        lock = FileLock(tmp_path / "d-running" / LOCK_FILE)
        with lock:
            code, out, _ = run_cli("runs", tmp_path, "--json")
            _, table, _ = run_cli("runs", tmp_path)
        found = {run["folder"].split("/")[-1]: run for run in json.loads(out)["runs"]}
        states = {name: run["state"] for name, run in found.items()}
        assert code == 0
        assert states == {
            "a-finished": "finished", "b-broken": "damaged", "c-stopped": "stopped", "d-running": "running",
            "e-damaged": "damaged",
        }  # fmt: skip
        assert (found["a-finished"]["kept"], found["a-finished"]["sites"]) == (4, 8)
        assert 0 < found["c-stopped"]["step"] < 8
        assert found["e-damaged"]["problem"]
        assert "b-broken: " in table
        assert "stopped at step" in table
        assert not (stopped / LOCK_FILE).exists(), "looking left a file behind"

    def test_no_folder_is_one_line_and_an_empty_one_is_told(self, run_cli, tmp_path):
        code, _, err = run_cli("runs", tmp_path / "none")
        assert (code, len(lines(err))) == (2, 1)
        assert run_cli("runs", tmp_path)[:2] == (0, f"no runs in {tmp_path}: indexcache search writes them\n")


class TestEnv:
    def test_never_shows_a_secret(self, run_cli, monkeypatch):
        secrets = {
            "INDEXCACHE_API_KEY": "s3cret-one",
            "HF_TOKEN": "hf_abcdefghijklmnop",
            "INDEXCACHE_SEARCH_DATASET": "https://me:s3cret-two@host/data?sig=s3cret-three",
            "INDEXCACHE_SEARCH_MODEL": "hf_s3cretsecretsecret",
        }
        for name, value in secrets.items():
            monkeypatch.setenv(name, value)
        for options in ([], ["--json"]):
            code, out, err = run_cli("env", *options)
            assert code == 0
            for name in secrets:
                assert name in out
            for value in ("s3cret", "abcdefghijklmnop"):
                assert value not in out + err

    def test_has_what_a_report_needs(self, run_cli):
        document = json.loads(run_cli("env", "--json", "-q")[1])
        assert {"indexcache", "python", "torch", "transformers"} <= set(document["versions"])
        assert document["torch"]["problem"] is None
        assert document["torch"]["threads"] >= 1

    def test_plain_values_stay(self):
        shown = shown_variables({"INDEXCACHE_SEARCH_KEEP": "0.25", "HOME": "/root", "RANK": "0"})
        assert shown == {"INDEXCACHE_SEARCH_KEEP": "0.25", "RANK": "0"}
