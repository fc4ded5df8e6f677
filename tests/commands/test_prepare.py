"""What a search is warned of before any weight is loaded."""

import json
import re

import pytest


@pytest.fixture
def estimate(run_cli, checkpoints):
    def run(*options):
        arguments = ["--model", checkpoints["glm_moe_dsa"], "--no-time", "--json", "-q", *options]
        code, out, err = run_cli("estimate", *arguments)
        assert code == 0
        return json.loads(out), err

    return run


@pytest.mark.parametrize("keep", [0.9, 0.99])
def test_a_budget_that_keeps_every_site_says_which_would_drop_one(estimate, keep):
    document, err = estimate("--keep", keep)
    sites = document["sites"]
    assert document["kept"] == sites
    warning = f"warning: --keep {keep:g} keeps all {sites} sites, as it is rounded up: the plan drops no indexer"
    assert warning in err
    largest = re.search(r"give --keep (\S+) or less", err)[1]
    document, err = estimate("--keep", largest)
    assert document["kept"] == sites - 1
    assert "warning" not in err


def test_where_every_site_has_to_stay_full_no_budget_is_named(estimate):
    document, err = estimate("--keep", 0.9, "--pin", ",".join(map(str, range(1, 6))))
    assert document["kept"] == document["sites"]
    assert "all have to stay full" in err
    assert "or less" not in err


def test_what_is_not_rounded_needs_no_warning(estimate):
    assert "warning" not in estimate("--keep", 1)[1]
    assert "warning" not in estimate("--max-delta", 0.1)[1]
