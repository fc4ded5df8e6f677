"""What is printed: one JSON document whatever happens, no escape codes, a line a minute, names as they are."""

import io
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
import yaml

from indexcache.errors import GateError, IndexcacheError, InterruptedRunError, LostProcessError, StoppedRunError
from indexcache.search.export.engines import ENGINES
from indexcache.search.export.settings import export
from indexcache.search.export.support import Serving
from indexcache.search.plan.cut import cut
from indexcache.search.plan.file import read_plan
from indexcache.search.report.pages import render
from indexcache.search.report.timing import now, timing_of
from indexcache.system.console import Reporter

HOSTILE = [
    "'; touch it; '", '"; touch it; "', "$(touch it)", "`touch it`", "a b", "a\\", "${IFS}", "!x", "~root", "#x",
    "<script>alert(1)</script>", '" onload="alert(1)', "]]>", "-->", "&lt;b&gt;", "[red]x[/red]", "{0}", "{{ x }}",
    "{% raw %}", "| a | b |", "[x](javascript:1)", "**b**", "# h", ":boom:", "%s", "é文🜚", "a: b", "- a", "EOF",
]  # fmt: skip


def everywhere(plan, text):
    """The plan with ``text`` wherever any text may stand."""
    model = plan.model.model_copy(update={"id": text, "revision": text, "architecture": text})
    tokens = plan.tokens.model_copy(
        update=dict.fromkeys(("dataset", "subset", "split", "column", "revision"), text)
    )
    run = plan.run.model_copy(
        update=dict.fromkeys(("dtype", "device", "indexer", "attention"), text) | {"versions": {text: text}}
    )
    search = plan.search.model_copy(update={"strategy": text})
    return plan.model_copy(
        update={"model": model, "tokens": tokens, "run": run, "search": search, "indexcache": text}
    )


class Page(HTMLParser):
    """Collects tags with their attributes, and text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, tuple(sorted(name for name, _ in attributes))))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def plan(searched):
    return read_plan(searched / "plan.json")


@pytest.mark.reliability("R11")
def test_reports_show_any_text_as_it_is(plan, cases):
    harmless = render(everywhere(plan, "x"))
    for text in HOSTILE:
        files = render(everywhere(plan, text))
        page, plain = Page(files["report.html"]), Page(harmless["report.html"])
        # A name that a command line would take for an option has no settings, and so no remarks on them.
        alike = set(page.tags) <= set(plain.tags) if text.startswith("-") else page.tags == plain.tags
        cases.check(alike, f"{text!r} became markup in report.html")
        cases.check(f"indexcache plan for {text}" in page.text, f"{text!r} is not in report.html as it is")
        markdown = files["report.md"]
        bare = re.sub(r"\\[^\w\s]|&\w+;", "", markdown)
        signs = [sign for sign in "<>`*[]|" if bare.count(sign) != harmless["report.md"].count(sign)]
        cases.check(not signs, f"{text!r} left {signs} bare in report.md")
        cases.check(markdown.count("\n") == harmless["report.md"].count("\n"), f"{text!r} broke lines")


@pytest.mark.reliability("R11")
def test_a_plans_file_name_cannot_become_markup(run_cli, searched, tmp_path):
    name = "a](javascript:1) <b>.json"
    shutil.copy(searched / "plan.json", tmp_path / name)
    assert run_cli("report", tmp_path / name)[0] == 0
    text = next(tmp_path.glob("*-report.md")).read_text("utf-8")
    assert "](javascript" not in text
    assert "<b>" not in text


@pytest.mark.reliability("R11", "R24")
def test_exports_quote_any_text(plan, cases, tmp_path):
    for text in (hostile for hostile in HOSTILE if not hostile.startswith("-")):
        named = plan.model_copy(update={"model": plan.model.model_copy(update={"id": text, "revision": text})})
        for engine in ENGINES:
            pasted = export(named, engine).paste
            for checked, held in _read_back(engine, pasted, tmp_path):
                cases.check(checked(text, held), f"{engine} does not read {text!r} back from {pasted!r}")


def _read_back(engine, pasted, folder):
    """What was pasted, read as its reader reads it: how to compare, and what was found."""
    if engine in ("vllm", "sglang", "vllm-ascend", "atom", "lmdeploy", "tokenspeed"):
        # The shell itself says what the words are.
        script = pasted.replace("\n", " ").strip()
        done = subprocess.run(
            ["bash", "-c", f"f() {{ printf '%s\\0' \"$@\"; }}; f {script}"],
            capture_output=True,
            cwd=folder,
            check=False,
        )
        words = done.stdout.decode().split("\0")
        yield (lambda text, value: text in value and done.returncode == 0), words
        yield (lambda text, value: any(json.loads(word) for word in value if word.startswith('{"'))), words
        yield (lambda text, value: not value), list(folder.iterdir())
    elif engine == "transformers":
        yield (lambda text, value: compile(value, engine, "exec") and repr(text) in value), pasted
    elif engine == "tensorrt-llm":
        body, command = pasted.split("<<'EOF'\n")[1].split("\nEOF\n")
        yield (lambda text, value: value["revision"] == text), yaml.safe_load(body)
        yield (lambda text, value: value[1] == text), shlex.split(command)
    elif engine == "prime-rl":
        yield (lambda text, value: bool(value)), tomllib.loads(pasted)
    else:
        yield (lambda text, value: bool(value)), json.loads(pasted)


def test_a_model_that_reads_as_an_option_is_not_put_on_a_command_line(plan):
    for text in ("--trust-remote-code", "-x"):
        model = plan.model.model_copy(update={"id": text})
        with pytest.raises(IndexcacheError, match="read as an option"):
            export(plan.model_copy(update={"model": model}), "vllm")
    exported = export(plan.model_copy(update={"model": model}), "vllm", Serving(model="./-x"))
    served = next(word for word in shlex.split(exported.paste) if word.endswith("-x"))
    assert Path(served).is_absolute()


@pytest.mark.reliability("R11")
def test_tables_show_any_name_as_it_is(run_cli, searched, tmp_path, cases, monkeypatch):
    from indexcache.commands.search import search_summary

    plan = read_plan(searched / "plan.json")
    for text in HOSTILE:
        monkeypatch.setattr("sys.stderr", shown := io.StringIO())
        search_summary(everywhere(plan, text), tmp_path, timing_of([(now(), 1.0, 1)]))
        cases.check(shown.getvalue().startswith(f"{text}: "), f"{text!r} became {shown.getvalue()[:80]!r}")


FAILURES = {
    "usage": ["search", "--wat"],
    "no command": ["wat"],
    "no value": ["search", "--keep"],
    "a word for a number": ["search", "--keep", "many"],
    "no recipe": ["search", "--recipe", "none"],
    "no model": ["search", "--keep", "0.5"],
    "no plan": ["eval", "none.json"],
    "no plan to cut": ["cut", "none.json"],
    "no plan to export": ["export", "none.json", "--to", "vllm"],
    "no engine": ["export", "PLAN", "--to", "\x1b[31mnone"],
    "nothing to cut by": ["cut", "PLAN"],
    "both to cut by": ["cut", "PLAN", "--keep", "0.5", "--max-delta", "1"],
    "a bad name to cut to": ["cut", "PLAN", "--keep", "0.5", "--out", "FOLDER/bench.json"],
    "a report for a folder": ["report", "FOLDER"],
    "a folder for a file": ["report", "PLAN", "--out", "PLAN"],
    "no context": ["bench", "PLAN", "--context", "x"],
    "no group": ["eval", "PLAN", "--on", "x"],
    "no model to inspect": ["inspect", "./none"],
    "a home that is not there": ["inspect", "~nobody-of-that-name/x"],
    "no model to estimate": ["estimate", "--keep", "0.5", "--model", "./none"],
}


def filled(arguments, searched, folder):
    return [word.replace("PLAN", str(searched / "plan.json")).replace("FOLDER", str(folder)) for word in arguments]


@pytest.mark.reliability("R19")
def test_json_is_one_document_under_every_failure(run_cli, searched, tmp_path, cases):
    for what, arguments in FAILURES.items():
        code, out, err = run_cli(*filled(arguments, searched, tmp_path), "--json")
        try:
            error = json.loads(out)["error"]
        except (ValueError, KeyError):
            error = {}
        fine = code == 2 and error.get("exit_code") == 2 and len(err.splitlines()) == 1
        cases.check(fine and err.strip().isprintable(), f"{what}: {code} {out[:200]!r} {err[:200]!r}")
        code, out, err = run_cli(*filled(arguments, searched, tmp_path))
        cases.check((code, out, len(err.splitlines())) == (2, "", 1), f"{what}: {out[:200]!r} {err[:200]!r}")


@pytest.mark.reliability("R19")
def test_json_is_one_document_whatever_goes_wrong_inside(run_cli, searched, cases, monkeypatch):
    wrong = [kind("a\nb\x1b[2J") for kind in _kinds(IndexcacheError) if kind is not InterruptedRunError]
    wrong += [InterruptedRunError(1), StoppedRunError("a\nb", hint="c\nd\x1b")]
    wrong += [
        RuntimeError("x\ny"),
        MemoryError(),
        RecursionError("deep"),
        KeyError("a"),
        UnicodeDecodeError("x", b"", 0, 1, "y"),
    ]
    wrong += [KeyboardInterrupt(), PermissionError(13, "Permission denied", "/some/file")]
    for error in wrong:

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr("indexcache.search.plan.file.read_plan", fail)
        code, out, err = run_cli("export", searched, "--to", "vllm", "--json")
        name = type(error).__name__
        codes = {GateError: 1, StoppedRunError: 75, LostProcessError: 75}
        codes |= {InterruptedRunError: 129, KeyboardInterrupt: 130}
        code_expected = codes.get(type(error), 2)
        lines = [line for line in err.splitlines() if line]
        fine = code == code_expected and len(lines) == 1 and lines[0].isprintable()
        # A failed check has printed its document before.
        fine = fine and (
            out == "" if isinstance(error, GateError) else {"error", "stopped"} & set(json.loads(out or "{}"))
        )
        cases.check(fine, f"{name}: {code} {out[:200]!r} {err[:200]!r}")


def _kinds(kind):
    return [subclass for child in kind.__subclasses__() for subclass in (child, *_kinds(child))]


@pytest.mark.reliability("R19")
def test_no_escape_codes_without_a_terminal(run_cli, searched, tmp_path, cases, monkeypatch):
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS", "TTY_COMPATIBLE"):
        monkeypatch.setenv(name, "1")
    for arguments in (
        ["eval", searched / "plan.json"],
        ["inspect", "recipes/tiny"],
        ["search", "--help"],
        ["cut", searched / "plan.json", "--keep", "0.5", "--out", tmp_path / "cut.json"],
    ):
        code, out, err = run_cli(*arguments)
        cases.check(code == 0 and "\x1b" not in out + err, f"{arguments}: {code} {out[:300]!r} {err[:300]!r}")


@pytest.mark.reliability("R20")
def test_a_line_at_least_every_ten_seconds(capsys, cases):
    now = [0.0]
    reporter = Reporter(clock=lambda: now[0])

    def silence(seconds):
        """The longest time between two lines while one pulse comes a second."""
        spoke, longest = now[0], 0.0
        for _ in range(seconds):
            now[0] += 1
            reporter.pulse()
            if capsys.readouterr().err:
                spoke, longest = now[0], max(longest, now[0] - spoke)
        return max(longest, now[0] - spoke)

    cases.check(silence(600) <= 10, "nothing was said for ten seconds while reading")
    reporter.doing("hashing the weights")
    cases.check(silence(600) <= 10, "nothing was said for ten seconds while hashing")
    reporter.begin(100, "window evaluations")
    cases.check(silence(600) <= 10, "nothing was said for ten seconds while nothing was measured")
    reporter.advance(50)
    cases.check(silence(3600) <= 10, "nothing was said for ten seconds while measuring")
    reporter.say("step 1/3")
    now[0] += 4
    reporter.pulse()
    cases.check(capsys.readouterr().err == "step 1/3\n", "a line came although one had just been said")
    quiet = Reporter(quiet=True, clock=lambda: now[0])
    with quiet:
        now[0] += 600
    cases.check(capsys.readouterr().err == "", "quiet was not quiet")


@pytest.mark.reliability("R20")
def test_the_heart_beats_by_itself(capsys, monkeypatch):
    beats = []
    monkeypatch.setattr(Reporter, "pulse", lambda self: beats.append(1))
    reporter = Reporter()
    monkeypatch.setattr(reporter._stop, "wait", lambda seconds: len(beats) >= 3)
    with reporter:
        reporter._pulse_thread.join(10)
    assert len(beats) == 3


def test_progress_that_nobody_reads_costs_no_run(monkeypatch):
    reporter = Reporter()

    def leave(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", leave)
    reporter.say("a line")
    reporter.warn("another")


def test_every_variable_has_the_name_of_its_option():
    from indexcache.cli import app

    for command in typer.main.get_command(app).commands.values():
        for option in command.params:
            flag = next((flag for flag in option.opts if flag.startswith("--")), None)
            if flag is None or not (option.allow_from_autoenv or option.envvar):
                continue
            wanted = f"{command.name}_{flag.removeprefix('--')}".upper().replace("-", "_")
            assert (option.envvar or f"INDEXCACHE_{command.name}_{option.name}".upper()) == f"INDEXCACHE_{wanted}"


def test_what_runs_strangers_code_comes_from_the_command_line_alone(run_cli, tmp_path, monkeypatch):
    from indexcache.cli import app

    for command in typer.main.get_command(app).commands.values():
        for option in command.params:
            if option.name in ("trust_remote_code", "allow_pickle"):
                assert (option.allow_from_autoenv, option.envvar) == (False, None)
    for field in ("trust_remote_code", "allow_pickle"):
        (tmp_path / "mine.yaml").write_text(f"model: recipes/tiny\n{field}: true\n")
        code, _, err = run_cli("search", "--recipe", tmp_path / "mine.yaml", "--keep", 0.5)
        assert (code, f"give --{field.replace('_', '-')} on the command line" in err) == (2, True)


class TestCut:
    def test_never_takes_the_place_of_another_file(self, run_cli, searched, tmp_path, cases):
        folder = shutil.copytree(searched, tmp_path / "run")
        (folder / "config.json").write_text("{}")
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        for name in (
            "bench.json",
            "plan-bench.json",
            "windows.safetensors",
            "report.md",
            "journal.jsonl",
            "config.json",
        ):
            code, _, err = run_cli("cut", folder, "--keep", 0.25, "--out", folder / name)
            cases.check((code, len(err.splitlines())) == (2, 1), f"{name}: exit {code}: {err}")
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    def test_leaves_a_searchs_own_plan_alone(self, run_cli, searched, tmp_path):
        folder = shutil.copytree(searched, tmp_path / "run")
        code, _, err = run_cli("cut", folder, "--keep", 0.25, "--out", folder / "plan.json")
        assert (code, "is a search's own plan" in err) == (2, True), err
        assert (folder / "plan.json").read_bytes() == (searched / "plan.json").read_bytes()
        code, _, err = run_cli("cut", folder, "--keep", 0.25, "--out", "")
        assert (code, len(err.splitlines())) == (2, 1), err

    def test_leaves_another_runs_tokens_alone(self, run_cli, searched, tmp_path):
        (tmp_path / "windows.safetensors").write_bytes(b"another's")
        code, _, err = run_cli("cut", searched, "--keep", 0.25, "--out", tmp_path / "plan.json")
        assert (code, "another plan's tokens" in err) == (2, True)
        assert (tmp_path / "windows.safetensors").read_bytes() == b"another's"

    @pytest.mark.parametrize(
        "file", ["..", "plan.json", "../x.safetensors", "/etc/x.safetensors", "a/b.safetensors"]
    )
    def test_a_plan_names_tokens_beside_it_only(self, run_cli, searched, tmp_path, file):
        document = json.loads((searched / "plan.json").read_text())
        document["tokens"]["file"] = file
        (tmp_path / "plan.json").write_text(json.dumps(document))
        code, _, err = run_cli("cut", tmp_path, "--keep", 0.25)
        assert (code, "tokens.file" in err) == (2, True)


def test_cut_plans_of_any_text_are_plans(plan, tmp_path):
    for number, text in enumerate(HOSTILE):
        path = tmp_path / f"{number}.json"
        path.write_text(cut(everywhere(plan, text), keep=0.5).as_json(), "utf-8")
        assert read_plan(path).model.id == text
