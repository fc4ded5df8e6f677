"""Loading a checkpoint under a plan from Python and with the apply command."""

import json
import re

import pytest
import torch
import transformers
from conftest import save
from random_models import build

import indexcache
from indexcache.commands.apply import _generate
from indexcache.errors import IdentityError, ModelError, PlanError
from indexcache.pattern import Pattern

IDS = torch.randint(1, 4000, (1, 40), generator=torch.Generator().manual_seed(4))


@torch.inference_mode()
def logits(model):
    return model(input_ids=IDS, use_cache=False).logits


@pytest.fixture
def plan(searched):
    return json.loads((searched / "plan.json").read_text("utf-8"))


class TestLoad:
    def test_it_runs_under_the_plans_pattern(self, checkpoints, searched, plan):
        model = indexcache.load(checkpoints["eight"], plan=searched / "plan.json")
        types = ["full" if role == "F" else "shared" for role in plan["result"]["layer_pattern"]]
        native = transformers.AutoModelForCausalLM.from_pretrained(checkpoints["eight"], indexer_types=types)
        assert torch.equal(logits(model), logits(native))
        assert not model.training
        assert isinstance(model, transformers.PreTrainedModel)
        assert str(model.indexcache.pattern) == plan["result"]["pattern"]

    def test_a_runs_folder_names_its_plan(self, checkpoints, searched, plan):
        model = indexcache.load(str(checkpoints["eight"]), str(searched))
        assert str(model.indexcache.pattern) == plan["result"]["pattern"]

    def test_dtype_is_the_plans_unless_given(self, checkpoints, searched):
        assert indexcache.load(checkpoints["eight"], searched).dtype == torch.float32
        assert indexcache.load(checkpoints["eight"], searched, dtype="bfloat16").dtype == torch.bfloat16
        assert indexcache.load(checkpoints["eight"], searched, dtype=torch.bfloat16).dtype == torch.bfloat16

    def test_other_weights_are_refused_unless_told_not_to_look(self, checkpoints, searched, tmp_path):
        other = save(build("glm_moe_dsa", layers=8, seed=9), tmp_path)
        with pytest.raises(IdentityError, match="weights_sha256"):
            indexcache.load(other, searched)
        assert indexcache.load(other, searched, verify=False).indexcache

    def test_no_plan_no_model(self, checkpoints, tmp_path):
        with pytest.raises(PlanError, match="does not exist"):
            indexcache.load(checkpoints["eight"], tmp_path / "plan.json")

    def test_weights_on_disk_give_the_same_logits(self, checkpoints, searched, tmp_path):
        whole = indexcache.load(checkpoints["eight"], searched)
        places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu", "model.rotary_emb": "cpu"}
        places |= {f"model.layers.{layer}": "cpu" if layer < 2 else "disk" for layer in range(8)}
        offloaded = indexcache.load(
            checkpoints["eight"], searched, device_map=places, offload_folder=str(tmp_path / "offload")
        )
        assert torch.equal(logits(offloaded), logits(whole))


class Recomputing:
    """Gives a model's forward to callers that keep no cache, in ways that remote code has."""

    @staticmethod
    def that_says_so(model):
        model.config.use_cache = False

    @staticmethod
    def that_takes_none(model):
        forward = model.forward
        model.forward = lambda input_ids, attention_mask=None: forward(input_ids=input_ids, use_cache=False)

    @staticmethod
    def whose_cache_cannot_be_counted(model):
        def get_seq_length(cache, layer=0):
            raise ValueError("`get_seq_length` can only be called on a Cache that has attention layers")

        transformers.DynamicCache.get_seq_length = get_seq_length

    @staticmethod
    def that_cannot_generate(model):
        model.generate = None


WITHOUT_CACHE = [name for name in vars(Recomputing) if not name.startswith("_")]


class TestWithoutCache:
    @pytest.mark.parametrize("way", WITHOUT_CACHE)
    def test_the_same_tokens_come_out(self, checkpoints, searched, monkeypatch, way):
        monkeypatch.setattr(transformers.DynamicCache, "get_seq_length", transformers.DynamicCache.get_seq_length)
        model = indexcache.load(checkpoints["eight"], searched)
        prompt, lines = IDS[0].tolist(), []
        expected = _generate(model, prompt, 6, lines.append)
        assert (len(expected), lines) == (6, [])
        getattr(Recomputing, way)(model)
        assert _generate(model, prompt, 6, lines.append) == expected
        assert len(lines) == 1
        assert "no key-value cache" in lines[0]

    def test_it_ends_where_the_model_does(self, checkpoints, searched):
        model = indexcache.load(checkpoints["eight"], searched)
        prompt = IDS[0].tolist()
        expected = _generate(model, prompt, 6)
        model.generation_config.eos_token_id = expected[2]
        first = expected.index(expected[2]) + 1
        assert _generate(model, prompt, 6) == expected[:first]
        model.config.use_cache = False
        assert _generate(model, prompt, 6) == expected[:first]

    @pytest.mark.parametrize(
        "error",
        [
            ValueError("no such token"),
            ValueError("cache_position is of the wrong shape"),
            TypeError("forward() got an unexpected keyword argument 'past_key_values'"),
            ModelError("the cache was filled without a pattern"),
        ],
        ids=str,
    )
    def test_another_failure_is_not_taken_for_one_of_the_cache(self, checkpoints, searched, error):
        def generate(*arguments, **options):
            raise error

        model = indexcache.load(checkpoints["eight"], searched)
        model.generate = generate
        with pytest.raises(type(error), match=re.escape(str(error))):
            _generate(model, IDS[0].tolist(), 2)


class TestApply:
    def test_a_second_plan_takes_the_place_of_the_first(self, checkpoints, searched, run_cli, tmp_path):
        model = transformers.AutoModelForCausalLM.from_pretrained(checkpoints["eight"]).eval()
        stock = logits(model)
        indexcache.apply(model, searched)
        under_plan = logits(model)
        code, out, _ = run_cli("cut", searched, "--keep", "1", "--out", tmp_path / "all.json")
        assert code == 0, out
        indexcache.apply(model, tmp_path / "all.json")
        assert torch.equal(logits(model), stock)
        assert not torch.equal(under_plan, stock)
        model.indexcache.remove()
        assert torch.equal(logits(model), stock)

    def test_another_layout_is_refused(self, searched):
        with pytest.raises(ModelError, match="layers 0-7"):
            indexcache.apply(build("glm_moe_dsa"), searched)

    def test_a_folder_is_no_model(self, checkpoints, searched):
        with pytest.raises(ModelError, match="no loaded model"):
            indexcache.apply(checkpoints["eight"], searched)

    def test_the_pattern_has_to_fit(self, checkpoints, searched):
        model = indexcache.load(checkpoints["eight"], searched)
        with pytest.raises(ModelError, match="3 letters for 8 sites"):
            model.indexcache.use(Pattern("FSS"))


class TestCommand:
    def test_a_prompt_of_its_own_tokens(self, run_cli, searched, plan):
        code, out, err = run_cli("apply", searched, "--new-tokens", 6, "--json", "-q")
        document = json.loads(out)
        assert (code, err) == (0, "")
        assert document["prompt_tokens"] == plan["tokens"]["window"] - 6
        assert document["positions_that_choose"] == plan["tokens"]["window"] - 16
        assert len(document["plan"]["tokens"]) == len(document["all_full"]["tokens"]) == 6
        alike = [
            ours == theirs
            for ours, theirs in zip(document["plan"]["tokens"], document["all_full"]["tokens"], strict=True)
        ]
        assert document["agreed_tokens"] == (alike.index(False) if False in alike else 6)

    def test_it_continues_what_is_given_as_transformers_does(self, run_cli, searched, checkpoints, tokenizer):
        text = "What is the meaning of this?" * 3
        code, out, err = run_cli("apply", searched, "--prompt", text, "--new-tokens", 5, "--json")
        assert code == 0, err
        ids = tokenizer(text, return_tensors="pt")
        model = transformers.AutoModelForCausalLM.from_pretrained(checkpoints["eight"])
        expected = model.generate(**ids, max_new_tokens=5, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert json.loads(out)["all_full"]["tokens"] == expected.tolist()

    def test_for_people(self, run_cli, searched):
        code, out, _ = run_cli("apply", searched, "--prompt", "One", "--new-tokens", 4)
        assert code == 0
        assert "this plan, " in out
        assert "alike in the first" in out
        assert "nothing could differ" in out, "one token and four more are fewer than indexers select"

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--prompt", ""), "holds no tokens"),
            (("--new-tokens", "600"), "positions"),
            (("--new-tokens", "0"), "new-tokens"),
            (("--model", "nowhere"), "does not exist"),
        ],
    )
    def test_wrong_input_is_one_line(self, run_cli, searched, options, said):
        code, out, err = run_cli("apply", searched, *options)
        assert (code, out) == (2, "")
        assert said in err
        assert "Traceback" not in err


def test_lm_eval_takes_the_model(checkpoints, searched):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    model = indexcache.load(checkpoints["eight"], searched)
    harness = huggingface.HFLM(pretrained=model, batch_size=1)
    asked = Instance("loglikelihood", {}, ("One two three " * 12, "four five"), 0)
    (answer,) = harness.loglikelihood([asked], disable_tqdm=True)
    model.indexcache.use(Pattern.all_full(8))
    (full,) = harness.loglikelihood([asked], disable_tqdm=True)
    assert answer[0] != full[0]
