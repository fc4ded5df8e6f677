"""The command line: help, version, options, and the commands that need no model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from command_lines import lines
from golden_options import OPTIONS, options_text
from random_models import EMBEDDED

from indexcache import __version__


def test_cut_writes_a_plan_beside_the_old_one(run_cli, searched, tmp_path):
    folder = shutil.copytree(searched, tmp_path / "run")
    code, out, _ = run_cli("cut", folder / "plan.json", "--keep", 0.25)
    assert (code, out) == (0, f"{folder / 'plan-2of8.json'}\n")
    code, out, _ = run_cli("eval", folder / "plan-2of8.json", "--json", "-q")
    assert (code, json.loads(out)["plan"]["kept"]) == (0, 2)


def test_export_prints_settings_on_stdout_and_notes_on_stderr(run_cli, searched):
    code, out, err = run_cli("export", searched / "plan.json", "--to", "vllm")
    assert code == 0
    assert out.startswith("vllm serve ")
    assert {line.split(":")[0] for line in lines(err)} == {"note", "warning", "evidence", "next"}
    code, out, _ = run_cli("export", searched / "plan.json", "--to", "sglang", "--json")
    assert set(json.loads(out)["settings"]) >= {"index_topk_pattern", "indexer_types"}
    plan = json.loads((searched / "plan.json").read_text())
    shared = plan["result"]["pattern"].index("S")  # where a stage cannot start
    arguments = ["--to", "vllm", "--engine-version", "0.30.0", "--pp-layers", f"{shared},{8 - shared}", "--json"]
    code, out, _ = run_cli("export", searched, *arguments)
    assert (code, "--force" in json.loads(out)["error"]["hint"]) == (2, True)
    code, out, err = run_cli("export", searched, *arguments, "--force")
    document = json.loads(out)
    assert (code, document["pattern"], document["written"]) == (0, plan["result"]["layer_pattern"], None)
    told = [line.partition(": ")[2].removesuffix(" [docs/troubleshooting.md#engines]") for line in lines(err)]
    assert [*(remark["text"] for remark in document["warnings"]), document["evidence"]] == told
    failing = [remark["text"] for remark in document["warnings"] if remark["severity"] == "error"]
    assert len(failing) == 1
    assert "get no selection" in failing[0]
    code, out, err = run_cli("export", searched / "plan.json", "--to", "tgi", "--json")
    assert (code, "tgi" in json.loads(out)["error"]["message"]) == (2, True)


def test_inspect_reads_a_config_without_weights(run_cli, tmp_path):
    shutil.copy(EMBEDDED / "config.json", tmp_path)
    code, out, _ = run_cli("inspect", tmp_path, "--json")
    document = json.loads(out)
    assert code == 0
    assert (document["sites"], document["selection_width"], document["kept_at_quarter"]) == (16, 64, 4)
    assert 6_000_000 < document["parameters"] < 6_500_000
    code, out, _ = run_cli("inspect", tmp_path)
    assert "16, 16 of them sites" in out


def test_report_renders_again(run_cli, searched, tmp_path):
    code, out, _ = run_cli("report", searched / "plan.json", "--out", tmp_path)
    assert code == 0
    for line in lines(out):
        assert Path(line).read_text() == (searched / Path(line).name).read_text()


def test_version_and_help(run_cli):
    assert run_cli("--version")[1] == f"indexcache {__version__}\n"
    for arguments in ([], ["--help"], ["-h"], ["search", "--help"]):
        code, out, _ = run_cli(*arguments)
        assert code == 0
        assert "Usage" in out


def run_python(code, **changes):
    environment = {name: value for name, value in os.environ.items() if name != "HOME"} | changes
    return subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)


def test_help_does_not_import_torch():
    code = (
        "import sys\nfrom indexcache.cli import main\n"
        "try:\n    main(['search', '--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = run_python(code)
    assert done.returncode == 0, "--help imported torch or transformers"


class TestOptions:
    """Every option is frozen: command, flags, default and environment variable."""

    def test_are_those_of_the_golden_file(self):
        """``python tests/golden_options.py --write`` after a change that is meant."""
        assert options_text() == OPTIONS.read_text("utf-8")
