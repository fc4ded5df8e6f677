"""The check of the code for long windows: what it lets through, and what it refuses before a search."""

import functools
import inspect

import pytest
import torch
from random_models import TOKEN_INDEX_FAMILIES, build, load_checkpoint, site_layers

from indexcache.dsa.caches import CacheArgument, cache_in
from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.sites import find_indexers
from indexcache.dsa.checks import fastpath
from indexcache.dsa.checks.fastpath import check_fast_path
from indexcache.dsa.checks.selfcheck import check_backends, check_tokens, self_check
from indexcache.dsa.long import attention, indexers, scores
from indexcache.dsa.long.backends import Backends, install
from indexcache.errors import ModelError

TOKENS, WIDTH = 96, 16
BOTH = Backends("chunked", "sparse")
IDS = torch.randint(5, 250, (TOKENS,), generator=torch.Generator().manual_seed(4)).tolist()


def check(model, backends=BOTH, family="glm_moe_dsa"):
    check_fast_path(model, site_layers(family), WIDTH, backends, IDS)


def refused(model, says, backends=BOTH):
    with pytest.raises(ModelError, match=says):
        check(model, backends)
    assert not [
        name for name, module in model.named_modules() if {"forward", "expand_kv"} & module.__dict__.keys()
    ]


@pytest.fixture
def model():
    return build("glm_moe_dsa")


@pytest.mark.parametrize("family", TOKEN_INDEX_FAMILIES)
@pytest.mark.parametrize("backends", [Backends("chunked"), Backends("stock", "sparse"), BOTH], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lets_every_family_through(family, backends, dtype):
    check(build(family).to(dtype), backends, family)


def test_runs_two_chunks_in_both_of_which_queries_choose(model, monkeypatch):
    seen, stock = [], indexers._KeyCollector.update_indexer
    monkeypatch.setattr(
        indexers._KeyCollector,
        "update_indexer",
        lambda self, keys, layer: (seen.append((self.first, keys.shape[1])), stock(self, keys, layer))[1],
    )
    check(model)
    assert set(seen) == {(0, 56), (56, 40)}


def shifted(first, chosen):
    chosen.sub_(1).clamp_(min=0)


def random(first, chosen):
    for row, keys in enumerate(chosen):
        keys[:] = torch.randperm(max(first + row + 1, len(keys)))[: len(keys)]


def worst(first, chosen):
    for row, keys in enumerate(chosen):
        left_out = sorted(set(range(first + row + 1)) - set(keys.tolist()))[: len(keys)]
        keys[: len(left_out)] = torch.tensor(left_out, dtype=keys.dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
class TestWindowsHardlyLongerThanTheSelection:
    """The share of all selected keys says nothing there: even the worst choice has most of them right."""

    WIDTH = 512
    IDS = torch.randint(5, 250, (check_tokens(WIDTH),), generator=torch.Generator().manual_seed(4)).tolist()

    def check(self, dtype):
        model = build("glm_moe_dsa", index_topk=self.WIDTH, max_position_embeddings=1024).to(dtype)
        check_fast_path(model, site_layers("glm_moe_dsa"), self.WIDTH, Backends("chunked"), self.IDS)

    def test_right_selections_pass(self, dtype):
        self.check(dtype)

    @pytest.mark.parametrize("wrong", [shifted, random, worst])
    def test_wrong_selections_are_refused(self, dtype, wrong, monkeypatch):
        stock = scores.select_tokens

        def select(*args):
            stock(*args)
            wrong(args[5], args[6])

        monkeypatch.setattr(scores, "select_tokens", select)
        with pytest.raises(
            ModelError, match="of the keys that layer 0 selects in chunks are not its own; of keys"
        ):
            self.check(dtype)


class TestNumbersThatAreNone:
    """The model's own, for which the backends are not to blame."""

    def test_the_layer_and_the_weight_are_named(self, model):
        with torch.no_grad():
            model.model.layers[1].self_attn.o_proj.weight[0, 0] = float("nan")
        with pytest.raises(
            ModelError, match=r"layer 1 produces NaN or infinity: its weight .*layers\.1\."
        ) as caught:
            check(model)
        assert "o_proj.weight holds such values" in str(caught.value)
        assert "--indexer" not in caught.value.hint

    def test_a_weight_of_the_embedding(self, model):
        with torch.no_grad():
            model.model.embed_tokens.weight[IDS[3]] = float("inf")
        with pytest.raises(ModelError, match=r"embedding produces NaN .* model\.embed_tokens\.weight holds"):
            check(model)

    def test_a_type_that_is_too_narrow(self, model):
        with torch.no_grad():
            model.model.layers[1].self_attn.o_proj.weight.mul_(1e7)
            model.half().model.layers[1].self_attn.o_proj.weight.clamp_(-6e4, 6e4)
        with pytest.raises(ModelError, match=r"layer 1 produces NaN or infinity$") as caught:
            check(model)
        assert "--dtype bfloat16" in caught.value.hint

    def test_the_advice_of_the_check_is_kept(self, checkpoints):
        checkpoint = open_checkpoint(str(checkpoints["glm_moe_dsa"]))
        model = load_checkpoint(checkpoint, "float32")
        with torch.no_grad():
            model.model.layers[1].self_attn.o_proj.weight[0, 0] = float("nan")
        for run in (
            lambda: check_backends(model, checkpoint, BOTH, IDS, TOKENS),
            lambda: self_check(model, checkpoint, IDS),
        ):
            with pytest.raises(ModelError, match=r"o_proj\.weight holds such values") as caught:
                run()
            assert "fetch or convert the checkpoint again" in caught.value.hint
            assert caught.value.shared


class TestRefuses:
    def test_indexers_that_ignore_the_cache_they_are_given(self, model, monkeypatch):
        kind = type(next(iter(find_indexers(model)[1].values())))
        stock = kind.forward

        @functools.wraps(stock)
        def without(self, *args, **kwargs):
            name = CacheArgument(functools.partial(stock, self), "an indexer").name
            return stock(self, *args, **kwargs | {name: None})

        monkeypatch.setattr(kind, "forward", without)
        refused(model, "does not go through the cache that it is given")

    def test_selections_that_are_shifted(self, model, monkeypatch):
        stock = scores.select_tokens

        def shifted(*args):
            stock(*args)
            args[6].sub_(1).clamp_(min=0)

        monkeypatch.setattr(scores, "select_tokens", shifted)
        refused(model, "of the keys that layer 0 selects in chunks are not its own")

    def test_the_second_chunk_alone_being_wrong(self, model, monkeypatch):
        stock = scores.select_tokens

        def late(queries, keys, weights, visible, batch, first, chosen, budget):
            stock(queries, keys, weights, visible, batch, first, chosen, budget)
            if first:
                chosen[:] = torch.arange(WIDTH, dtype=torch.int32)

        monkeypatch.setattr(scores, "select_tokens", late)
        refused(model, "selects in chunks are not its own")

    def test_attention_that_computes_something_else(self, model, monkeypatch):
        monkeypatch.setattr(
            attention._LayerProjections,
            "absorbed",
            lambda self, query: (query[..., : self.nope] @ self.to_latent * 1.5, query[..., self.nope :]),
        )
        monkeypatch.setattr(attention, "_DENSE_UP_TO", 0)
        refused(model, "gives other hidden states than the model's own code", Backends("stock", "sparse"))

    def test_chunks_that_are_not_taken(self, model, monkeypatch):
        monkeypatch.setattr(indexers.ChunkedIndexers, "_forward", lambda self, rows, stock_forward: stock_forward)
        refused(model, "does not run in chunks, though it was to")

    def test_sparse_attention_that_is_not_taken(self, model, monkeypatch):
        monkeypatch.setattr(fastpath, "install", lambda model, backends, rows: install(model, Backends("chunked")))
        refused(model, "does not take the sparse attention that was to run")

    def test_in_one_line_that_says_what_to_do(self, checkpoints, monkeypatch):
        checkpoint = open_checkpoint(str(checkpoints["glm_moe_dsa"]))
        monkeypatch.setattr(indexers.ChunkedIndexers, "_forward", lambda self, rows, stock_forward: stock_forward)
        with pytest.raises(ModelError, match=r"the self-check of .* failed: the indexer of layer 0") as caught:
            check_backends(load_checkpoint(checkpoint, "float32"), checkpoint, BOTH, IDS, TOKENS)
        assert "--indexer stock" in caught.value.hint

    def test_shorter_windows_follow_where_the_models_own_code_runs_out_of_memory(self, checkpoints, monkeypatch):
        checkpoint, tried = open_checkpoint(str(checkpoints["glm_moe_dsa"])), []

        def short_of_memory(model, sites, width, backends, ids):
            tried.append(len(ids))
            if len(ids) > 100:
                raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr("indexcache.dsa.checks.selfcheck.check_fast_path", short_of_memory)
        check_backends(None, checkpoint, BOTH, IDS, 400)
        assert tried == [400, 200, 100]

    @pytest.mark.parametrize(
        ("fault", "shared"), [(ModelError("layer 0"), True), (RuntimeError("a GPU fell out"), False)]
    )
    def test_only_what_every_process_compares_alike_is_told_by_one(self, fault, shared, checkpoints, monkeypatch):
        checkpoint = open_checkpoint(str(checkpoints["glm_moe_dsa"]))

        def failing(*args):
            raise fault

        def failing_on_less(model, sites, width, backends, ids):
            if len(ids) == TOKENS:
                raise torch.OutOfMemoryError("CUDA out of memory")
            raise fault

        for check, alike in ((failing, shared), (failing_on_less, False)):
            monkeypatch.setattr("indexcache.dsa.checks.selfcheck.check_fast_path", check)
            with pytest.raises(ModelError) as caught:
                check_backends(None, checkpoint, BOTH, IDS, TOKENS)
            assert caught.value.shared is alike


class TestNamesOfTheCache:
    """A next release that renames again is an error that says so."""

    def renamed(self, model, monkeypatch, of, **names):
        """Gives the class of ``of`` a forward with other names, as a release would."""
        stock = type(of).forward
        inner = inspect.signature(stock)
        parameters = [
            parameter.replace(name=names.get(name, name)) for name, parameter in inner.parameters.items()
        ]
        back = {new: old for old, new in names.items()}

        def forward(self, *args, **kwargs):
            return stock(self, *args, **{back.get(name, name): value for name, value in kwargs.items()})

        forward.__signature__ = inner.replace(parameters=parameters)
        monkeypatch.setattr(type(of), "forward", forward)

    def test_an_indexer_that_takes_it_under_an_unknown_name(self, model, monkeypatch):
        indexer = find_indexers(model)[1][0]
        self.renamed(model, monkeypatch, indexer, **{CacheArgument(indexer.forward, "it").name: "kv"})
        refused(model, "the forward of an indexer takes no cache or past_key_values, but hidden_states, .*, kv")
        with pytest.raises(ModelError, match="takes no cache or past_key_values"):
            install(model, Backends("chunked"))

    def test_an_indexer_whose_rows_have_an_unknown_name(self, model, monkeypatch):
        self.renamed(model, monkeypatch, find_indexers(model)[1][0], q_resid="q_latent")
        refused(model, "with other arguments than chunks of rows are made of: q_latent")

    @pytest.mark.parametrize("name", ["cache", "past_key_values"])
    def test_either_name_is_read_under_the_forwards_own(self, name):
        def forward(hidden_states, cache=None): ...

        def older(hidden_states, past_key_values=None): ...

        for cached in (forward, older):
            argument = CacheArgument(cached, "it")
            assert argument.cache_of((1,), {name: "a cache"}) == "a cache"
            assert argument.bound((1,), {name: "a cache"})[argument.name] == "a cache"
            assert argument.cache_of((1, "a cache"), {}) == "a cache"
            assert argument.cache_of((1,), {}) is None

    def test_decorators_that_keep_the_signature_are_seen_through(self):
        def forward(hidden_states, cache=None): ...

        @functools.wraps(forward)
        def renaming(*args, **kwargs): ...

        assert CacheArgument(renaming, "it").name == "cache"
        with pytest.raises(ModelError, match="takes no cache"):
            CacheArgument(lambda *args, **kwargs: None, "it")

    def test_a_forward_without_a_cache_may_be_one_where_none_is_needed(self):
        assert CacheArgument(lambda input_ids: None, "it", needed=False).name is None
        with pytest.raises(ModelError):
            CacheArgument(lambda input_ids, state, use_cache: None, "it", needed=False)

    def test_outputs_are_read_under_either_name_and_as_tuples(self, model):
        ids = torch.tensor([IDS])
        out = model(input_ids=ids, use_cache=True)
        assert cache_in(out).get_seq_length() == TOKENS
        as_tuple = model(input_ids=ids, use_cache=True, return_dict=False)
        assert cache_in(as_tuple).get_seq_length() == TOKENS
        assert cache_in(model(input_ids=ids, use_cache=False)) is None
