"""Training the embedded model: our forward equals stock, windows come as they should, stages do what they say."""

import json
import math
from argparse import Namespace

import pytest
import torch
from random_models import EMBEDDED, ROOT

from indexcache.recipes.tiny import batches, forward, held_out, text, train

OPTIONS = Namespace(
    layers=2, hidden=64, index_heads=8, index_topk=16, row_stride=4, answer_weight=1.0, lengths=[32, 64]
)
DENSE, INDEX, SPARSE = train.STAGES


@pytest.fixture
def model():
    torch.manual_seed(0)
    return train.new_model(OPTIONS)


@pytest.fixture
def plain():
    return batches.Batches(torch.arange(1, 4001, dtype=torch.int32), {}, 0.0, 128, seed=0)


def test_our_forward_is_that_of_transformers(model):
    figures = held_out.check_against_stock(model, 64, seed=0)
    assert figures["agrees"], figures
    assert figures["logits"] < 1e-5


def test_a_forward_of_another_model_is_seen(model, monkeypatch):
    turn = forward.turn
    monkeypatch.setattr(forward, "turn", lambda states, rotary, heads: turn(states, rotary, heads).flip(-1) * 3)
    assert not held_out.check_against_stock(model, 64, seed=0)["agrees"]


@pytest.mark.parametrize("stage", train.STAGES, ids=lambda stage: stage.name)
def test_a_stage_learns_what_it_says(model, plain, stage):
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    learner = train.Learner(model, stage)
    figures = train.accumulate(model, plain.draw(32), stage, OPTIONS)
    learner.step(0.5)
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert any(".indexer." in name for name in moved) == stage.learns_index
    assert any(".indexer." not in name for name in moved) == stage.learns_text
    assert bool(figures[2] > 0) == stage.learns_index


def test_keys_beyond_the_selection_are_not_seen_in_the_sparse_stage(model):
    tokens = torch.randint(1, 4000, (1, 64), generator=torch.Generator().manual_seed(1))
    dense, sparse = (forward.run_layers(model, tokens, sparse) for sparse in (False, True))
    assert torch.allclose(dense[:, :16], sparse[:, :16], atol=1e-5), "up to 16 keys, all are selected"
    assert not torch.allclose(dense[:, 16:], sparse[:, 16:], atol=1e-5)


def test_a_window_that_begins_with_a_document_has_a_finite_gradient():
    torch.manual_seed(0)
    deep = train.new_model(Namespace(**{**vars(OPTIONS), "layers": 16}))
    train.learn_padding_row(deep)
    windows = torch.randint(1, 4000, (1, 33))
    windows[0, 0] = deep.config.pad_token_id  # <|endoftext|>
    train.accumulate(deep, (windows, torch.zeros(1, 32, dtype=torch.bool)), DENSE, OPTIONS)
    wrong = [
        name
        for name, weight in deep.named_parameters()
        if not (weight.grad is None or weight.grad.isfinite().all())
    ]
    assert not wrong, "a padding row of zeros overflows the backward of RMSNorm"
    assert deep.model.embed_tokens.weight.grad[deep.config.pad_token_id].any(), "the row is learned"


def test_a_learned_padding_row_stays_as_it_is(model):
    learned = torch.full_like(model.model.embed_tokens.weight[0], 0.5)
    with torch.no_grad():
        model.model.embed_tokens.weight[0] = learned
    train.learn_padding_row(model)
    assert torch.equal(model.model.embed_tokens.weight[0], learned)


def test_a_step_whose_gradient_is_not_finite_is_skipped_and_counted(model, plain):
    learner = train.Learner(model, DENSE)
    before = model.lm_head.weight.detach().clone()
    train.accumulate(model, plain.draw(32), DENSE, OPTIONS)
    model.lm_head.weight.grad[0, 0] = math.nan
    learner.step(0.5)
    assert torch.equal(model.lm_head.weight, before), "no weight moves"
    assert learner.report() == {"skipped": 1, "norm": 0}
    train.accumulate(model, plain.draw(32), DENSE, OPTIONS)
    learner.step(0.5)
    assert not torch.equal(model.lm_head.weight, before), "the next step is taken"
    report = learner.report()
    assert report["skipped"] == 0
    assert report["norm"] > 0


COMMAND = ["train.py", "--train", "a", "--val", "b", "--out", "c", "--stages", "dense", "sparse"]


def test_stages_take_shares_and_rates_from_the_command_line(monkeypatch):
    monkeypatch.setattr("sys.argv", [*COMMAND, "--shares", "0.7", "0.3", "--rates", "1e-3", "2e-4"])
    stages = train.chosen_stages(train.parse_options())
    chosen = [(stage.name, stage.share, stage.peak_rate) for stage in stages]
    assert chosen == [("dense", 0.7, 1e-3), ("sparse", 0.3, 2e-4)]


@pytest.mark.parametrize("option", ["--shares", "--rates"])
def test_a_share_or_rate_too_few_is_refused(monkeypatch, capsys, option):
    monkeypatch.setattr("sys.argv", [*COMMAND, option, "0.7"])
    with pytest.raises(SystemExit):
        train.parse_options()
    assert f"{option} has 1 numbers, but 2 stages run" in capsys.readouterr().err


def test_the_rate_rises_and_falls():
    rates = [train.rate_share(step / 100) for step in range(101)]
    assert rates[3] == pytest.approx(1)
    assert rates[:4] == sorted(rates[:4])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[-1] == pytest.approx(train.LEAST_RATE)


def test_a_stage_ends_in_its_time_and_reaches_its_last_length(model, plain):
    figures = train.train_stage(model, DENSE, 0.2, plain, OPTIONS)
    assert figures["steps"] > 1
    assert figures["curve"][-1]["loss"] < 9
    assert figures["seconds"] < 10


def test_every_text_window_of_a_pass_comes_once(plain):
    drawn = torch.cat([plain.draw(32)[0][:, 0] for _ in range(124 // 4)])
    assert len(drawn.unique()) == len(drawn)
    assert len({int(first - drawn[0]) % 32 for first in drawn}) == 1


def test_probes_and_their_answers_stand_in_their_share_of_a_batch():
    ids, marks = torch.full((6, 33), 7, dtype=torch.int32), torch.zeros(6, 32, dtype=torch.bool)
    marks[:, -1] = True
    mixed = batches.Batches(torch.arange(4000, dtype=torch.int32) + 8, {32: (ids, marks)}, 0.25, 256, seed=0)
    for _ in range(5):
        windows, answers = mixed.draw(32)
        assert windows.shape == (8, 33)
        assert answers.sum(1).tolist() == [0] * 6 + [1] * 2
        assert (windows[6:] == 7).all()


def test_probe_windows_mark_the_answers(tokenizer):
    documents = ["The sun rose over the hills. People went to the market, and all were glad. " * 200]
    ids, answers = batches.probe_windows(tokenizer, documents, 256, 0, batches.KINDS, 8)
    assert ids.shape == (8, 257)
    assert answers.any(1).all()
    assert answers[:, -1].all(), "a window ends with an answer"


def test_probe_figures_are_those_of_the_likeliest_token():
    probe = batches.Probe("recall", 0.5, 4, (3, 1, 2, 0), (1, 2), 0)

    class Guesser:
        def __call__(self, tokens, use_cache):
            following = torch.zeros(*tokens.shape, 5)
            following[:, 1, 2] = following[:, 2, 4] = 9.0  # right at label 1, wrong at label 2
            return Namespace(logits=following)

    figures = held_out.probe_figures(Guesser(), [probe], torch.device("cpu"))
    assert figures["recall"]["accuracy"] == 0.5
    assert figures["recall"]["all_right"] == 0


def test_the_config_holds_what_engines_read(model):
    config = json.loads(model.config.to_json_string(use_diff=False))
    assert config["indexer_rope_interleave"] is True
    assert (config["topk_method"], config["scoring_func"], config["moe_layer_freq"]) == ("noaux_tc", "sigmoid", 1)
    assert config["index_head_dim"] == 64
    assert config["tie_word_embeddings"] is False
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert set(config["mlp_layer_types"]) == {"dense"}


def test_a_new_tokenizer_has_the_special_tokens_of_the_shipped_one(monkeypatch, tokenizer):
    monkeypatch.setattr(text, "VOCABULARY", 300)
    small = text.train_tokenizer(["the cat and the dog and the bird " * 9])
    assert len(small) <= 300
    assert list(small.get_added_vocab()) == list(tokenizer.get_added_vocab())
    assert small.encode("<|user|> the") != small.encode("the")
    assert len(tokenizer) == 4096


def test_the_readme_names_options_that_exist(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train.py", "--help"])
    with pytest.raises(SystemExit):
        train.parse_options()
    known = capsys.readouterr().out
    readme = (ROOT / EMBEDDED / "README.md").read_text("utf-8")
    named = {word.strip("`.,:;") for word in readme.split() if word.strip("`").startswith("--")}
    assert {name for name in named if name not in known} <= {"--recipe", "--keep"}
