"""Every kind of wrong input: one line on stderr, one JSON document on request, exit code 2."""

import json

import pytest
from command_lines import lines, search_arguments

WRONG = {
    "a model that does not exist": ({"model": "./nowhere"}, "'./nowhere' does not exist"),
    "a hub model out of reach": ({"model": "nobody/nothing"}, "'nobody/nothing'"),
    "keep 0": ({"keep": 0}, "keep is 0"),
    "keep 1.5": ({"keep": 1.5}, "keep is 1.5"),
    "keep and max-delta": ({"max_delta": 0.1}, "both --keep and --max-delta"),
    "neither": ({"keep": None}, "how much to keep"),
    "negative max-delta": ({"keep": None, "max_delta": -1}, "max-delta is -1"),
    "no model": ({"model": None}, "no model was given"),
    "no dataset": ({"dataset": None}, "no dataset was given"),
    "a window shorter than the selection": ({"window": 16}, "measure nothing"),
    "a window longer than the model": ({"window": 4096}, "longer than the model's 512 positions"),
    "a window of one": ({"window": 1}, "window"),
    "a missing dataset": ({"dataset": "./none.jsonl"}, "does not exist"),
    "more windows than text": ({"windows": 5000}, "5000 calibration windows"),
    "a negative seed": ({"seed": -1}, "seed"),
    "a split of a local file": ({"dataset_split": "test"}, "is local and has no split"),
    "a revision of a local folder": ({"revision": "main"}, "no revision"),
    "an older plan without fast": ({"init": "PLAN", "strategy": "exact"}, "gives no head start"),
    "too many blocks": ({"strategy": "blocks", "blocks": 9}, "9 blocks"),
    "a pinned layer that is not there": ({"pin": "0,6"}, "layer 6 cannot be pinned"),
    "a pin that is no number": ({"pin": "0,x"}, "--pin is '0,x'"),
    "a negative pin": ({"pin": "-1"}, "pin"),
    "stages of another model": ({"pp_layers": "20,20,21"}, "add up to 61 layers, but the model has 6"),
    "more stages than layers": ({"pp_size": 7}, "pp-size is 7"),
    "stages given twice": ({"pp_size": 2, "pp_layers": "3,3"}, "both pp-size and pp-layers"),
    "more stages than sites to keep": ({"pp_size": 4}, "4 of 6 sites have to stay full"),
    "an unknown dtype": ({"dtype": "int4"}, "dtype"),
    "an unknown strategy": ({"strategy": "magic"}, "strategy"),
    "an unknown option": ({"wat": 1}, "--wat"),
    "a word for a number": ({"windows": "many"}, "--windows is 'many'"),
    "another way to resume": ({"resume": "maybe"}, "--resume is 'maybe'"),
    "a missing recipe": ({"recipe": "nonesuch"}, "'nonesuch' does not exist"),
}


class TestWrongInput:
    @pytest.mark.reliability("R19")
    @pytest.mark.parametrize("case", WRONG)
    def test_is_one_line_and_a_json_document_and_exit_2(
        self, run_cli, checkpoints, text_file, searched, tmp_path, case
    ):
        """One run gives both: --json adds the document on stdout, and without it nothing is printed there."""
        changes, says = WRONG[case]
        changes = {name: searched / "plan.json" if value == "PLAN" else value for name, value in changes.items()}
        arguments = search_arguments(checkpoints, text_file, tmp_path / "out", **changes)
        code, out, err = run_cli(*arguments, "--json")
        error = json.loads(out)["error"]
        assert (code, error["exit_code"]) == (2, 2)
        assert says in error["message"]
        assert len(lines(err)) == 1, err
        assert says in err
        assert not (tmp_path / "out" / "plan.json").exists()

    @pytest.mark.parametrize("case", ["keep 0", "an unknown option", "a missing dataset", "a missing recipe"])
    def test_without_json_stdout_stays_empty(self, run_cli, checkpoints, text_file, tmp_path, case):
        changes, says = WRONG[case]
        code, out, err = run_cli(*search_arguments(checkpoints, text_file, tmp_path / "out", **changes))
        assert (code, out, len(lines(err)), says in err) == (2, "", 1, True)

    def test_a_model_without_indexers(self, run_cli, checkpoints, text_file, tmp_path, llama):
        code, out, err = run_cli(*search_arguments(checkpoints, text_file, tmp_path, model=llama))
        assert (code, out, len(lines(err))) == (2, "", 1)
        assert "glm_moe_dsa" in err

    def test_an_empty_dataset(self, run_cli, checkpoints, tmp_path):
        empty = tmp_path / "empty.jsonl"
        empty.write_text("")
        code, out, err = run_cli(*search_arguments(checkpoints, empty, tmp_path / "out"))
        assert (code, out, len(lines(err))) == (2, "", 1), err
        assert "is empty" in err

    def test_an_unwritable_output(self, run_cli, checkpoints, text_file, tmp_path):
        (tmp_path / "file").write_text("")
        code, _, err = run_cli(*search_arguments(checkpoints, text_file, tmp_path / "file" / "run"))
        assert (code, len(lines(err))) == (2, 1)

    @pytest.mark.reliability("R19")
    @pytest.mark.parametrize("arguments", [["wat"], ["eval"], ["search", "--keep"], ["cut"]])
    def test_wrong_use_is_one_line(self, run_cli, arguments):
        code, out, err = run_cli(*arguments)
        assert (code, out, len(lines(err))) == (2, "", 1)
        assert "--help" in err
