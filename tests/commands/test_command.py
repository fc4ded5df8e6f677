"""Numbers as people write them, and errors that name what a setting came from."""

import json

import pytest

from indexcache.errors import SettingError
from indexcache.pattern import kept_sites
from indexcache.recipes.numbers import fraction
from indexcache.recipes.schema import read_recipe


def test_a_plan_that_cannot_be_written_is_named_as_it_was_given(run_cli, searched, tmp_path):
    (tmp_path / "file").touch()
    for target in ("/proc/plan.json", tmp_path / "file" / "plan.json"):
        code, out, err = run_cli("cut", searched, "--keep", 0.25, "--out", target)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert str(target) in err
        assert "windows.safetensors" not in err


class TestFractions:
    @pytest.mark.parametrize(
        "text", ["0.25", "0,25", ".25", "25%", "25 %", "25,0%", "1/4", " 1 / 4 ", "2.5e-1", "+0.25"]
    )
    def test_a_quarter_in_every_spelling(self, run_cli, searched, tmp_path, text):
        assert fraction(text) == 0.25
        code, out, err = run_cli("cut", searched, "--keep", text, "--out", tmp_path / "new.json", "--json")
        assert code == 0, err
        assert json.loads(out)["result"]["keep"] == 0.25

    @pytest.mark.parametrize(
        "text",
        ["viertel", "", "%", "1:4", "4/0", "1/4/2", "0.25.1", "0x1", "1/", "25%%", "1_0", "9" * 5000, "1e9999"],
    )
    def test_what_is_none_is_answered_with_an_example(self, run_cli, searched, text):
        code, _, err = run_cli("cut", searched, "--keep", text)
        assert (code, len(err.splitlines())) == (2, 1)
        assert "0.25, 25% or 1/4" in err
        assert "unexpected" not in err

    @pytest.mark.parametrize(
        ("text", "meant"), [("25", "0.25 or 25%"), ("50", "0.5 or 50%"), ("100", "1 or 100%")]
    )
    def test_per_cents_without_their_sign_are_asked_about(self, run_cli, searched, text, meant):
        code, _, err = run_cli("cut", searched, "--keep", text)
        assert (code, meant in err) == (2, True)

    @pytest.mark.parametrize("text", ["0", "-1", "1.01", "101%", "5/4", "nan", "inf", "1/0", "-25%"])
    def test_what_is_no_share_is_refused(self, run_cli, searched, text):
        code, _, err = run_cli("cut", searched, f"--keep={text}")
        assert (code, "--keep is" in err) == (2, True)

    def test_thirds_and_the_like_keep_as_many_as_they_say(self):
        for sites in range(1, 130):
            for kept in range(1, sites + 1):
                assert kept_sites(sites, fraction(f"{kept}/{sites}")) == kept
        assert [kept_sites(30, 0.1), kept_sites(3, 0.34)] == [3, 2]

    @pytest.mark.parametrize(
        ("text", "keep"), [("25%", 0.25), ("1/4", 0.25), ("'0,5'", 0.5), ("0.5", 0.5), ("1", 1.0)]
    )
    def test_recipes_take_them_too(self, tmp_path, text, keep):
        (tmp_path / "mine.yaml").write_text(f"keep: {text}\n")
        assert read_recipe(str(tmp_path / "mine.yaml")).keep == keep

    def test_a_recipes_wrong_one_is_answered_with_an_example(self, tmp_path):
        (tmp_path / "mine.yaml").write_text("keep: viel\n")
        with pytest.raises(SettingError, match=r"keep is 'viel'") as caught:
            read_recipe(str(tmp_path / "mine.yaml"))
        assert "25% or 1/4" in caught.value.hint

    @pytest.mark.parametrize("text", ["1:4", "1:4.5", "4/0"])
    def test_a_recipes_number_of_base_60_is_none(self, tmp_path, text):
        (tmp_path / "mine.yaml").write_text(f"keep: {text}\n")
        with pytest.raises(SettingError, match=f"keep is '{text}'"):
            read_recipe(str(tmp_path / "mine.yaml"))

    def test_a_number_of_sites_is_offered_as_a_share_of_them(self, run_cli, searched):
        assert "6/8 or 0.06 or 6%" in run_cli("cut", searched, "--keep", "6")[2]
        assert "/8" not in run_cli("cut", searched, "--keep", "12")[2]
        assert "/8" not in run_cli("cut", searched, "--keep", "2.5")[2]

    @pytest.mark.parametrize("text", ["0,5", "1e-1", "0.5"])
    def test_increases_take_a_decimal_comma(self, run_cli, searched, tmp_path, text):
        assert run_cli("cut", searched, "--max-delta", text, "--out", tmp_path / "new.json")[0] == 0


class TestVariables:
    """Variables that begin as this program's do and set nothing."""

    @pytest.mark.parametrize(
        ("variable", "said"),
        [
            ("INDEXCACHE_CUT_KEP", "did you mean INDEXCACHE_CUT_KEEP?"),
            ("INDEXCACHE_SEARCH_WINDOWSS", "did you mean INDEXCACHE_SEARCH_WINDOWS?"),
            ("INDEXCACHE_SEARCH_TRUST_REMOTE_CODE", "give --trust-remote-code on the command line"),
            ("INDEXCACHE_EVAL_ALLOW_PICKLE", "give --allow-pickle on the command line"),
            ("INDEXCACHE_QQQQQQQ", "INDEXCACHE_QQQQQQQ is not known"),
        ],
    )
    def test_are_named_in_one_line(self, run_cli, searched, tmp_path, monkeypatch, variable, said):
        monkeypatch.setenv(variable, "1")
        code, out, err = run_cli("cut", searched, "--keep", 0.5, "--out", tmp_path / "new.json")
        assert (code, out.strip()) == (0, str(tmp_path / "new.json"))
        (line,) = [line for line in err.splitlines() if line.startswith("warning: ")]
        assert variable in line
        assert said in line

    def test_those_that_set_something_are_not(self, run_cli, searched, tmp_path, monkeypatch):
        for variable in ("SEARCH_KEEP", "SEARCH_ALL", "ESTIMATE_TIME", "CUT_MAX_DELTA", "BENCH_REPEATS"):
            monkeypatch.setenv(f"INDEXCACHE_{variable}", "" if variable == "CUT_MAX_DELTA" else "1")
        for variable in ("INDEXCACHE_TRACEBACK", "INDEXCACHE_JOIN_SECONDS"):
            monkeypatch.setenv(variable, "1")
        code, _, err = run_cli("cut", searched, "--keep", 0.5, "--out", tmp_path / "new.json")
        assert (code, "warning: " in err) == (0, False), err


class TestSources:
    def said(self, run_cli, *arguments):
        code, _, err = run_cli(*arguments)
        assert (code, len(err.splitlines())) == (2, 1)
        return err

    @pytest.mark.parametrize(
        ("variable", "value"), [("KEEP", "25"), ("KEEP", "x"), ("MAX_DELTA", "-1"), ("MAX_DELTA", "x")]
    )
    def test_a_variable_is_named_where_it_set_the_value(self, run_cli, searched, monkeypatch, variable, value):
        monkeypatch.setenv(f"INDEXCACHE_CUT_{variable}", value)
        err = self.said(run_cli, "cut", searched)
        assert f"INDEXCACHE_CUT_{variable} is" in err
        assert "--keep" not in err
        assert "--max-delta" not in err

    def test_a_value_that_typer_refuses_names_it_too(self, run_cli, searched, monkeypatch):
        monkeypatch.setenv("INDEXCACHE_BENCH_REPEATS", "x")
        assert "'INDEXCACHE_BENCH_REPEATS'" in self.said(run_cli, "bench", searched)
        assert "'--repeats'" in self.said(run_cli, "bench", searched, "--repeats", "y")

    def test_hints_name_what_set_the_value(self, run_cli, checkpoints, text_file, tmp_path, monkeypatch):
        arguments = ["search", "--model", checkpoints["eight"], "--dataset", text_file, "--out", tmp_path / "out"]
        arguments += ["--keep", "0.5", "-q"]
        recipe = tmp_path / "mine.yaml"
        recipe.write_text("window: 100000\nwindows: 2\n")
        said = self.said(run_cli, *arguments, "--window", "100000")
        assert "lower --window" in said
        assert "lower the recipe's window" in self.said(run_cli, *arguments, "--recipe", recipe)
        monkeypatch.setenv("INDEXCACHE_SEARCH_WINDOW", "100000")
        assert "lower INDEXCACHE_SEARCH_WINDOW" in self.said(run_cli, *arguments, "--recipe", recipe)
        assert "lower --window" in self.said(run_cli, *arguments, "--recipe", recipe, "--window", "100000")

    def test_recipe_fields_are_named(self, run_cli, tmp_path):
        recipe = tmp_path / "mine.yaml"
        recipe.write_text("keep: 25\nmodel: m\n")
        assert "the recipe's keep is 25" in self.said(run_cli, "search", "--recipe", recipe)

    def test_a_missing_engine_is_answered_with_those_there_are(self, run_cli, searched):
        err = self.said(run_cli, "export", searched)
        assert all(name in err for name in ("--to", "vllm", "sglang", "prime-rl", "none"))
