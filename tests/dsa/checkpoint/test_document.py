"""Configs as people have them: in the shape of public ones, mistyped, cut short, or claiming what is not so."""

import json
import shutil
from pathlib import Path

import pytest
import transformers
from random_models import FAMILIES as SMALL
from random_models import LACKING, LAYERS, settings_of

from indexcache.calibrate.windows import check_length
from indexcache.dsa.checkpoint.architectures import skeleton
from indexcache.dsa.checkpoint.config import open_checkpoint
from indexcache.dsa.checkpoint.families import FAMILIES, family_of_class
from indexcache.dsa.checkpoint.sites import find_indexers
from indexcache.errors import ModelError, WindowError

CONFIGS = Path(__file__).parents[2] / "assets" / "configs"
# Of each public config: its sites, the layers that share in it, and the keys from which on indexers choose.
QUARTER = (0, *range(1, 78, 4))
GLM = (0, 1, *range(2, 78, 4))
EXPECTED = {
    "deepseek_v32": (range(61), (), 2048),
    "glm_moe_dsa": (GLM, sorted({*range(78)} - {*GLM}), 2048),
    "axk2": (range(48), (), 2048),
    "hy_v4": (QUARTER, sorted({*range(78)} - {*QUARTER}), 2048),
    "hy_v4_vl": (QUARTER, sorted({*range(78)} - {*QUARTER}), 2048),
    "mistral_large4": (range(72), (), 2048),
    "dots3_note": ((0, *range(1, 46, 4)), (), 2048),
    "glm5_next": (range(3, 45, 4), (), 2048 + 15),
    "deepseek_v4": (range(2, 43, 2), (), 4 * 513 - 1),
    "minimax_m3_vl": (range(3, 60), (), 2048),
    "qwen4_exp": (range(3, 40, 4), (), 2048 + 15),
}


@pytest.fixture
def opened(tmp_path):
    """Writes a config.json, a document or its text, and opens it as a checkpoint."""

    def run(content):
        written = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / "config.json").write_bytes(written)
        return open_checkpoint(str(tmp_path))

    return run


@pytest.fixture
def refused(opened):
    """The line with which a config.json is refused."""

    def run(content):
        with pytest.raises(ModelError) as caught:
            opened(content)
        assert "\n" not in caught.value.line()
        assert caught.value.exit_code == 2
        return caught.value.line()

    return run


def small(family="glm_moe_dsa", **changes):
    """A config.json of ``family`` with six layers; ``changes`` are of its language model."""
    alone = {"minimax_m3_vl": "minimax_m3_vl_text", "qwen4_exp": "qwen4_exp_text"}
    return {"model_type": alone.get(family, family)} | settings_of(family, **changes)


def test_every_family_has_a_config_in_the_shape_of_the_public_one():
    assert {path.stem for path in CONFIGS.glob("*.json")} == set(FAMILIES) == set(EXPECTED) == set(SMALL)


@pytest.mark.parametrize("family", EXPECTED)
def test_a_public_config_is_read_as_the_modules_of_its_model_are(family, tmp_path):
    shutil.copy(CONFIGS / f"{family}.json", tmp_path / "config.json")
    checkpoint = open_checkpoint(str(tmp_path))
    sites, shared, width = EXPECTED[family]
    assert checkpoint.family is FAMILIES[family]
    assert checkpoint.site_layers == tuple(sites)
    assert checkpoint.shared_layers == tuple(shared)
    assert checkpoint.selection_width == width
    assert checkpoint.unmeasured == ()
    check_length(width + 2, width)
    with pytest.raises(WindowError):
        check_length(width + 1, width)
    model = skeleton(checkpoint.config)
    assert tuple(find_indexers(model, checkpoint.layers)[1]) == checkpoint.site_layers
    assert type(model).__module__.startswith(f"transformers.models.{family}.")


@pytest.mark.skipif("hy_v4_vl" not in LACKING, reason="the installed transformers has hy_v4_vl")
def test_a_family_of_a_newer_release_says_so(tmp_path):
    shutil.copy(CONFIGS / "hy_v4_vl.json", tmp_path / "config.json")
    with pytest.raises(ModelError, match=f"transformers {transformers.__version__} does not know") as caught:
        open_checkpoint(str(tmp_path))
    assert "upgrade transformers" in caught.value.hint


class TestTheFamilyIsThatOfTheClass:
    def test_in_a_vision_model_of_another_type(self, opened):
        vision = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 32}
        vision |= {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
        checkpoint = opened({"model_type": "llava", "text_config": small(), "vision_config": vision})
        assert checkpoint.family is FAMILIES["glm_moe_dsa"]
        assert tuple(find_indexers(skeleton(checkpoint.config), LAYERS)[1]) == checkpoint.site_layers

    def test_where_the_text_model_has_no_type_of_its_own(self, opened):
        document = small("glm5_next")
        assert "model_type" not in document["text_config"]
        assert opened(document).family is FAMILIES["glm5_next"]

    def test_where_the_text_models_type_is_no_name(self, opened):
        document = small("mistral_large4")
        document["text_config"]["model_type"] = ["mistral_large4_text"]
        assert opened(document).family is FAMILIES["mistral_large4"]

    def test_and_not_of_a_class_that_only_borrows_the_name(self):
        borrowed = type("GlmMoeDsaConfig", (transformers.GlmMoeDsaConfig,), {"__module__": "somewhere.else"})
        assert borrowed.model_type == "glm_moe_dsa"
        assert family_of_class(borrowed) is None
        assert family_of_class(transformers.GlmMoeDsaConfig) is FAMILIES["glm_moe_dsa"]

    def test_index_keys_under_a_type_without_indexers(self, refused):
        line = refused(small("deepseek_v32") | {"model_type": "deepseek_v3"})
        assert "has index_topk, but its model_type is 'deepseek_v3'" in line
        assert "deepseek_v32" in line

    def test_a_type_in_capitals(self, refused):
        assert "it is spelled 'deepseek_v32'" in refused(small("deepseek_v32") | {"model_type": "DeepSeek_V32"})

    @pytest.mark.parametrize("name", ["glm-moe-dsa", " glm_moe_dsa ", "GLM-MoE-DSA", "glm_moe_dsa\n"])
    def test_a_type_in_another_spelling(self, refused, name):
        assert "it is spelled 'glm_moe_dsa'" in refused(small() | {"model_type": name})

    @pytest.mark.parametrize("name", [None, 3, ["glm_moe_dsa"]])
    def test_a_type_that_is_no_name(self, refused, name):
        assert "model_type is" in refused(small() | {"model_type": name})


class TestNesting:
    def test_a_nested_family_written_flat_is_not_measured_by_its_defaults(self, refused):
        document = small("mistral_large4")
        document |= document.pop("text_config")
        line = refused(document)
        assert "num_hidden_layers at its top" in line
        assert "takes 72" in line

    def test_a_flat_family_written_nested(self, refused):
        line = refused({"model_type": "deepseek_v32", "text_config": small("deepseek_v32")})
        assert "nests text_config, but DeepseekV32Config of transformers does not" in line

    @pytest.mark.parametrize("nested", [[1], "x", 3])
    def test_a_text_config_that_is_no_object(self, refused, nested):
        assert "text_config is" in refused({"model_type": "mistral_large4", "text_config": nested})

    def test_a_nested_key_is_named_with_its_place(self, refused):
        assert "text_config.index_topk is '16'" in refused(small("mistral_large4", index_topk="16"))


class TestFiles:
    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"\xef\xbb\xbf" + json.dumps(small()).encode(), "byte-order mark (BOM)"),
            (b"", "is an empty file"),
            (b" \n", "is an empty file"),
            (b"[]", "no object with keys"),
            (b"3", "no object with keys"),
            (json.dumps(small()).encode()[:200], "is not JSON"),
            (json.dumps(small()).encode("utf-16"), "not UTF-8"),
            (b"[" * 100_000, "cannot be read"),
            (b'{"model_type": "glm_moe_dsa", "index_topk": ' + b"9" * 5000 + b"}", "cannot be read"),
            (json.dumps(small())[:-1].encode() + b', "index_topk": 8}', "gives index_topk twice"),
            (json.dumps(small())[:-1].encode() + b', "model_type": "deepseek_v32"}', "gives model_type twice"),
        ],
    )
    def test_what_is_wrong_is_said(self, refused, content, says):
        assert says in refused(content)

    @pytest.mark.parametrize(
        ("content", "remedy"),
        [
            ('{"model_type": "glm_moe_dsa", "index_to', "cut short"),
            ('{"model_type": "glm_moe_dsa",', "cut short"),
            ('// mine\n{"model_type": "glm_moe_dsa"}', "no comments"),
            ('{"model_type": "glm_moe_dsa" # mine\n}', "no comments"),
            ('{"model_type": "glm_moe_dsa",\n}', "a comma too many"),
            ('{"eos_token_id": [1, 2, ], "model_type": "glm_moe_dsa"}', "a comma too many"),
            ('{"index_topk": }', "mend that place"),
            ('{"index_topk": nil}', "mend that place"),
        ],
    )
    def test_what_stops_being_json_is_told_apart(self, refused, content, remedy):
        line = refused(content.encode())
        assert "is not JSON" in line
        assert remedy in line
        assert ("cut short" in line) == (remedy == "cut short")

    def test_a_key_given_twice_alike_is_no_harm(self, opened):
        assert opened(json.dumps(small())[:-1].encode() + b', "index_topk": 16}').selection_width == 16


class TestNumbers:
    @pytest.mark.parametrize("value", ["16", -1, 0, True, 16.0, 10**30, [16], {}, float("nan"), float("inf")])
    @pytest.mark.parametrize(
        ("family", "key"),
        [
            ("glm_moe_dsa", "num_hidden_layers"),
            ("glm_moe_dsa", "index_topk"),
            ("deepseek_v32", "max_position_embeddings"),
            ("glm5_next", "index_kpool"),
            ("minimax_m3_vl", "index_block_size"),
            ("minimax_m3_vl", "index_topk_blocks"),
            ("qwen4_exp", "indexer_budget"),
            ("qwen4_exp", "indexer_compress_ratio"),
        ],
    )
    def test_what_decides_sites_and_widths_is_a_number_in_bounds(self, refused, family, key, value):
        document = small(family)
        document.get("text_config", document)[key] = value
        line = refused(document)
        assert f"{key} is {value!r}"[:50] in line
        assert "a whole number from 1" in line

    def test_more_layers_than_any_model_has_cost_nothing(self, refused):
        assert "num_hidden_layers is 1000000000" in refused(small() | {"num_hidden_layers": 10**9})

    @pytest.mark.parametrize(
        ("family", "key", "value", "says"),
        [
            ("minimax_m3_vl", "index_local_blocks", -1, "index_local_blocks is -1"),
            ("minimax_m3_vl", "sparse_attention_config", [1], "sparse_attention_config is [1]"),
            ("minimax_m3_vl", "sparse_attention_config", {"sparse_block_size": True}, "sparse_block_size is True"),
            (
                "minimax_m3_vl",
                "sparse_attention_config",
                {"sparse_attention_freq": 3},
                "sparse_attention_freq is 3",
            ),
            ("deepseek_v4", "compress_rates", [4], "compress_rates is [4]"),
            ("deepseek_v4", "compress_rates", {"compressed_sparse_attention": True}, "attention is True"),
            ("deepseek_v4", "compress_ratios", [4, 7], "compress_ratios is [4, 7]"),
            ("deepseek_v4", "compress_ratios", [4], "compress_ratios is [4]"),
            ("dots3_note", "use_dsa", "false", "use_dsa is 'false'"),
        ],
    )
    def test_settings_of_single_families(self, refused, family, key, value, says):
        assert says in refused(small(family) | {key: value})


class TestSchedules:
    """Keys by which layers share: first indexer_types, then index_topk_pattern, then index_topk_freq."""

    @pytest.mark.parametrize("family", ["glm_moe_dsa", "mistral_large4"])
    def test_null_is_the_default(self, opened, family):
        def sites(**changes):
            return opened(small(family, **changes)).site_layers

        everything = tuple(range(LAYERS))
        assert sites(index_topk_freq=None) == everything == sites()
        assert sites(index_topk_freq=2, index_skip_topk_offset=None) == (0, 1, 3, 5)
        assert sites(index_topk_freq=2, index_skip_topk_offset=2) == (0, 1, 3, 5)
        assert sites(index_topk_freq=None, index_skip_topk_offset=None) == everything
        assert sites(index_topk_pattern=None, indexer_types=None, index_topk_freq=None) == everything

    def test_a_pattern_longer_than_the_model_speaks_of_further_predictions(self, opened):
        checkpoint = opened(small(index_topk_pattern="FFSFSFS"))
        assert (checkpoint.site_layers, checkpoint.shared_layers) == ((0, 1, 3, 5), (2, 4))

    def test_a_list_says_full_or_shared(self, opened):
        checkpoint = opened(small(index_topk_pattern=["full", "full", "shared"] * 2))
        assert (checkpoint.site_layers, checkpoint.shared_layers) == ((0, 1, 3, 4), (2, 5))

    @pytest.mark.parametrize("key", ["index_topk_pattern", "indexer_types"])
    def test_a_list_of_letters_is_told_what_a_list_and_a_string_say(self, refused, key):
        document = small() | {key: list("FFSFSF")}
        if key == "index_topk_pattern":
            document.pop("indexer_types", None)
        assert "a list says full and shared; letters stand in a string, as index_topk_pattern" in refused(document)

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"index_topk_pattern": "ffsfsf"}, "'f' at layer 0 of index_topk_pattern, not a capital F or S"),
            ({"index_topk_pattern": "FFsFSF"}, "'s' at layer 2 of index_topk_pattern, not a capital F or S"),
            ({"index_topk_pattern": "FFXFSF"}, "index_topk_pattern[2] is 'X'"),
            ({"index_topk_pattern": "FFS"}, "index_topk_pattern has 3 entries for 6 layers"),
            ({"index_topk_pattern": ""}, "index_topk_pattern has 0 entries for 6 layers"),
            ({"index_topk_pattern": list("FFSFSF")}, "index_topk_pattern[0] is 'F', but has to be full or shared"),
            ({"index_topk_pattern": 5}, "index_topk_pattern is 5"),
            ({"index_topk_pattern": {"0": "F"}}, "index_topk_pattern is {'0': 'F'}"),
            ({"indexer_types": ["full", "Full", "shared"] * 2}, "indexer_types[1] is 'Full'"),
            ({"indexer_types": ["full"]}, "indexer_types has 1 entries for 6 layers"),
            ({"indexer_types": []}, "indexer_types has 0 entries for 6 layers"),
            ({"indexer_types": "full"}, "indexer_types is 'full'"),
            ({"indexer_types": [1] * 6}, "indexer_types[0] is 1"),
            ({"indexer_types": [["full"]] * 6}, "indexer_types[0] is ['full']"),
            ({"index_topk_freq": 0}, "index_topk_freq is 0"),
            ({"index_topk_freq": -2}, "index_topk_freq is -2"),
            ({"index_topk_freq": "2"}, "index_topk_freq is '2'"),
            ({"index_topk_freq": True}, "index_topk_freq is True"),
            ({"index_topk_freq": 2.5}, "index_topk_freq is 2.5"),
            ({"index_topk_freq": 2, "index_skip_topk_offset": "3"}, "index_skip_topk_offset is '3'"),
        ],
    )
    @pytest.mark.parametrize("family", ["glm_moe_dsa", "mistral_large4", "glm5_next"])
    def test_what_cannot_be_read_is_named(self, refused, family, changes, says):
        document = small(family)
        text = document.get("text_config", document)
        text.pop("indexer_types", None)
        text |= changes
        place = "text_config." if text is not document else ""
        line = refused(document)
        assert says in line.replace("text_config.", "")
        assert f"{place}index" in line


class TestClaims:
    """What a config says of sharing that transformers does not do."""

    CLAIMS = (
        {"index_topk_pattern": "FFSFSF"},
        {"index_topk_pattern": "ffsfsf"},
        {"index_topk_pattern": 7},
        {"index_topk_freq": 4},
        {"index_topk_freq": "4"},
        {"indexer_types": ["full", "shared"] * 3},
    )

    @pytest.mark.parametrize("claim", CLAIMS)
    @pytest.mark.parametrize("family", ["deepseek_v32", "axk2", "deepseek_v4"])
    def test_a_family_without_sharing_of_its_own(self, opened, family, claim):
        checkpoint = opened(small(family) | claim)
        assert checkpoint.site_layers == opened(small(family)).site_layers
        (line,) = checkpoint.unmeasured
        assert line.startswith(f"{next(iter(claim))} in config.json is not what is measured")

    def test_what_is_no_claim(self, opened):
        claims = {"index_topk_freq": 1, "index_topk_pattern": "FFFFFF", "indexer_types": ["full"] * 6}
        assert opened(small("deepseek_v32") | claims).unmeasured == ()
        nothing = dict.fromkeys(["index_topk_freq", "index_topk_pattern", "indexer_types"])
        assert opened(small("deepseek_v32") | nothing).unmeasured == ()

    def test_two_keys_that_disagree(self, opened):
        types = ["full", "shared"] * 3
        (line,) = opened(small(indexer_types=types, index_topk_pattern="FFSFSF")).unmeasured
        assert line.startswith("index_topk_pattern ")
        assert "indexers of layers 0, 2, 4" in line
        assert opened(small(indexer_types=types, index_topk_pattern="FSFSFS")).unmeasured == ()

    def test_a_key_outside_the_text_config(self, opened):
        checkpoint = opened(small("mistral_large4") | {"index_topk_pattern": "FFSFSF"})
        assert checkpoint.site_layers == tuple(range(LAYERS))
        assert len(checkpoint.unmeasured) == 1

    def test_are_said_before_a_search_and_by_inspect(self, checkpoints, run_cli, text_file, tmp_path):
        folder = shutil.copytree(checkpoints["deepseek_v32"], tmp_path / "model")
        document = json.loads((folder / "config.json").read_text()) | {"index_topk_pattern": "FFSFSF"}
        (folder / "config.json").write_text(json.dumps(document))
        says = "index_topk_pattern in config.json is not what is measured"
        shown = json.loads(run_cli("inspect", folder, "--json")[1])
        assert says in shown["unmeasured"][0]
        assert "not measured" in run_cli("inspect", folder)[1]
        arguments = ["search", "--model", folder, "--dataset", text_file, "--keep", "0.5", "--windows", 2]
        code, _, err = run_cli(*arguments, "--heldout", 1, "--window", 64, "--out", tmp_path / "run")
        assert code == 0
        assert err.count(says) == 1


@pytest.mark.parametrize("model_type", ["deepseek_v41", "deepseek_v4", "deepseek_v32"])
def test_sharing_by_source_layers_is_one_short_line(refused, model_type):
    family = "deepseek_v32" if model_type == "deepseek_v32" else "deepseek_v4"
    line = refused(small(family) | {"model_type": model_type, "index_source_layer_ids": [1, 3]})
    assert "index_source_layer_ids" in line
    assert "DeepSeek-V4.1" in line
    assert "not supported yet" in line
    assert "pip" not in line


@pytest.mark.parametrize("empty", [None, [], {}])
def test_no_source_layers_are_no_sharing(opened, empty):
    assert opened(small() | {"index_source_layer_ids": empty}).family is not None


@pytest.mark.parametrize("family", ["glm_moe_dsa", "mistral_large4"])
class TestTheCountOfLayers:
    def line(self, refused, family, **changes):
        document = small(family)
        text = document.get("text_config", document)
        del text["num_hidden_layers"]
        text |= changes
        return refused(document), "text_config." if text is not document else ""

    @pytest.mark.parametrize("key", ["num_hiden_layers", "n_layers", "num_layers"])
    def test_is_misspelt(self, refused, family, key):
        line, place = self.line(refused, family, **{key: 6})
        assert f"has no {place}num_hidden_layers" in line
        assert f"it has {key}" in line

    @pytest.mark.parametrize("changes", [{}, {"num_hidden_layers": None}])
    def test_is_missing(self, refused, family, changes):
        line, place = self.line(refused, family, **changes)
        assert f"has no {place}num_hidden_layers" in line
        assert "restore the config.json" in line


@pytest.mark.parametrize("family", ["glm_moe_dsa", "mistral_large4"])
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("fp8", "quantization_config is 'fp8', but has to be an object"),
        (["fp8"], "quantization_config is ['fp8'], but has to be an object"),
        (True, "quantization_config is True, but has to be an object"),
        ({"quant_method": ["fp8"]}, "quantization_config.quant_method is ['fp8'], but has to be a name"),
        *(
            (
                {"quant_method": "fp8", "weight_block_size": block},
                f"weight_block_size is {block!r}, but has to be two",
            )
            for block in ("32", [0, 0], [32], [32, 32, 32], [32.5, 32], 32, [True, 32], [-1, 32], [None, 32], {})
        ),
    ],
    ids=str,
)
def test_a_format_that_cannot_be_one_is_named_with_its_remedy(refused, family, settings, says):
    line = refused(small(family) | {"quantization_config": settings})
    assert says in line
    assert "restore the config.json" in line


def test_a_null_schedule_is_searched_and_its_tokenizer_read(checkpoints, run_cli, text_file, tmp_path):
    folder = shutil.copytree(checkpoints["glm_moe_dsa"], tmp_path / "model")
    document = json.loads((folder / "config.json").read_text())
    del document["indexer_types"]
    (folder / "config.json").write_text(json.dumps(document | {"index_topk_freq": None}))
    arguments = ["search", "--model", folder, "--dataset", text_file, "--keep", "0.5", "--windows", 2]
    code, out, err = run_cli(*arguments, "--heldout", 1, "--window", 64, "--out", tmp_path / "run", "--json")
    assert code == 0, err
    assert json.loads(out)["result"]["sites"] == LAYERS
