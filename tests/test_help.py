"""The overview of commands, their examples, the next command, and where messages are explained."""

import re
import sys
from collections import Counter

import pytest
from command_lines import lines
from random_models import ROOT
from test_documents import anchors, arguments, check_options
from typer.main import get_command

from indexcache import errors
from indexcache.cli import app
from indexcache.commands.overview import OVERVIEW

sys.path.insert(0, str(ROOT / "docs"))
import troubleshooting

COMMANDS = get_command(app).commands
ENTRIES = {name: entry for entries in OVERVIEW.values() for name, entry in entries.items()}
# Values for what a next command names.
GIVEN = {"plan_path": "outputs/tiny/plan.json", "model": "MODEL"}


class TestOverview:
    def test_every_command_stands_in_one_group(self):
        listed = Counter(name for entries in OVERVIEW.values() for name in entries)
        assert set(COMMANDS) == set(listed), "commands/overview.py lacks a command, or has one that is none"
        assert max(listed.values()) == 1, "a command stands in two groups"

    @pytest.mark.parametrize("width", [80, 100])
    def test_each_has_one_line_that_is_not_cut(self, run_cli, monkeypatch, width):
        monkeypatch.setenv("COLUMNS", str(width))
        code, out, _ = run_cli("--help")
        said = lines(out)
        assert code == 0
        for name in COMMANDS:
            assert [line for line in said if re.fullmatch(rf"  {name} +{re.escape(ENTRIES[name].purpose)}", line)]
        # The page's path is as long as it is, and stands alone in its line.
        assert max(len(line) for line in said if not line.startswith("Messages: ")) <= width

    def test_it_says_where_messages_are_explained(self, run_cli):
        out = run_cli("--help")[1]
        (page,) = re.findall(r"^Messages: (.+)$", out, re.MULTILINE)
        assert page == str(ROOT / errors.PAGE) or page.endswith(errors.PAGE)


def examples(command):
    return re.findall(r"^  (indexcache .+)$", command.epilog or "", re.MULTILINE)


class TestExamples:
    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_command_has_some_that_parse(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert examples(COMMANDS[name]), f"{name} has no example"
        for example in examples(COMMANDS[name]):
            assert arguments(example)[0] == name
            check_options(arguments(example))


class TestNextCommand:
    @pytest.mark.parametrize("name", [name for name in COMMANDS if ENTRIES[name].next])
    def test_it_parses(self, name):
        line = get_command(app).next_command(name, GIVEN, None)
        check_options(arguments(line))

    def test_it_names_the_plan_that_was_written(self, run_cli, searched, tmp_path):
        code, out, err = run_cli("cut", searched, "--keep", "0.5", "--out", tmp_path / "a plan.json")
        assert code == 0
        assert lines(err)[-1] == f"next: indexcache eval '{tmp_path}/a plan.json'"
        for quiet in (["--json"], []):
            _, out, err = run_cli("report", searched, "--out", tmp_path, *quiet)
            assert ("next: " in err) == (not quiet), err
            assert "next: " not in out

    def test_a_search_that_was_only_tried_is_next(self):
        tried = get_command(app).next_command("search", {"recipe": "tiny", "keep": 0.5, "dry_run": True}, None)
        assert tried == "indexcache search --recipe tiny --keep 0.5"


def sections():
    return anchors(troubleshooting.DOCUMENT)


class TestTroubleshooting:
    def test_the_lists_are_current(self):
        document = troubleshooting.DOCUMENT.read_text("utf-8")
        assert document == troubleshooting.updated(document), "run python docs/troubleshooting.py --write"

    def test_each_message_is_in_a_section_that_is_there(self):
        listed, document = troubleshooting.messages(), troubleshooting.DOCUMENT.read_text("utf-8")
        assert len(listed) > 300
        lost = {message.place for message in listed if message.section not in {*sections(), ""}}
        assert not lost, f"no section of docs/troubleshooting.md explains what is said at {sorted(lost)}"
        # Those that only pass on what was read, or what typer says; the sections tell of them.
        untold = {re.sub(r":\d+", "", message.place) for message in listed if not message.text.strip("…")}
        assert untold == {
            "commands/check.py",
            "commands/eval.py",
            "commands/verify.py",
            "commands/job/prepare.py",
            "commands/job/windows.py",
            "search/report/comparing/plans.py",
            "search/run/folder.py",
            "system/exits.py",
        }, "say the message where the error is made, so that docs/troubleshooting.py can list it"
        for message in listed:
            assert " ".join(message.text.split()) in document, message.place

    def test_each_class_of_errors_has_its_section(self):
        kinds = [errors.IndexcacheError]
        for kind in kinds:
            kinds += kind.__subclasses__()
            places = {kind.section, *kind.sections.values()}
            assert places <= {*sections(), ""}, f"{kind.__name__} links to no section"

    def test_an_error_links_by_the_module_that_raised_it(self, run_cli, tmp_path):
        _, _, err = run_cli("search", "--model", tmp_path / "none", "--dataset", tmp_path, "--keep", "0.5")
        assert err.rstrip().endswith("[docs/troubleshooting.md#finding-a-checkpoint]"), err
        code, out, err = run_cli("cut", tmp_path, "--keep", "0.5", "--json")
        assert '"see": "docs/troubleshooting.md#plans"' in out
        assert (code, len(lines(err))) == (2, 1)

    def test_a_warning_links_too(self, run_cli, searched, monkeypatch):
        monkeypatch.setenv("INDEXCACHE_CUT_KEAP", "1")
        _, _, err = run_cli("report", searched)
        assert lines(err)[0] == (
            "warning: INDEXCACHE_CUT_KEAP is not known: did you mean INDEXCACHE_CUT_KEEP? "
            "[docs/troubleshooting.md#options]"
        )
