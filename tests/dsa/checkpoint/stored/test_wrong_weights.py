"""Weights that would load wrong are refused, by name and cause; FP8 that fits loads as its dequantised twin."""

import json
import shutil

import eight_bit
import pytest
import torch
import transformers
from random_models import EMBEDDED, build, load_checkpoint, measure
from safetensors.torch import load_file, save_file

from indexcache.dsa.checkpoint import load as load_module
from indexcache.dsa.checkpoint.config import Trust, load_tokenizer, open_checkpoint
from indexcache.dsa.checkpoint.load import Placement, load_model
from indexcache.dsa.checkpoint.stored import unread
from indexcache.dsa.checkpoint.stored.weights import find_weights
from indexcache.dsa.checks.selfcheck import self_check
from indexcache.dsa.model.losses import PatternLosses
from indexcache.dsa.stream import load as stream_load
from indexcache.dsa.stream.files import Files
from indexcache.errors import IndexcacheError, ModelError
from indexcache.pattern import Pattern

IDS = torch.randint(0, 4000, (48,), generator=torch.Generator().manual_seed(2)).tolist()
FP8 = eight_bit.SETTINGS
MATRIX = "model.layers.1.self_attn.o_proj.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An FP8 checkpoint and its twin in bf16."""
    return eight_bit.make(tmp_path_factory.mktemp("dividing"))


@pytest.fixture
def rewritten(folders, tmp_path):
    """The FP8 checkpoint, or its twin, with other tensors or settings."""

    def write(change=lambda tensors: None, plain=False, **config):
        source = folders[plain]
        tensors = load_file(source / "model.safetensors")
        change(tensors)
        return eight_bit.write(source, tmp_path / "rewritten", tensors, **config)

    return write


def refusal(folder, dtype="auto", read=True):
    """What is said of the checkpoint, and that no weight is read for it."""
    checkpoint = open_checkpoint(str(folder))
    with pytest.MonkeyPatch.context() as patch:
        if not read:
            patch.setattr(Files, "read", lambda *args: pytest.fail("weights were read"))
            patch.setattr(load_module, "_load", lambda *args: pytest.fail("the weights were loaded"))
        with pytest.raises(ModelError) as caught:
            load_checkpoint(checkpoint, dtype)
    line = caught.value.line()
    assert "report" not in line
    assert "--no-selfcheck" not in line
    return line


def losses(folder, dtype="auto"):
    model = load_checkpoint(open_checkpoint(str(folder)), dtype)
    return measure(PatternLosses(model, (0, 1)), [Pattern("FF"), Pattern("FS")], IDS)


class TestEightBits:
    def test_that_fit_give_the_losses_of_the_dequantised_twin(self, folders):
        assert losses(folders[0]) == losses(folders[1])

    @pytest.mark.parametrize("scale", ["scale", "qscale_weight"])
    def test_have_scales_under_every_name_that_is_read(self, folders, tmp_path, scale):
        assert losses(eight_bit.make(tmp_path, scale=scale)[0]) == losses(folders[1])

    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_are_dequantised_to_another_type(self, folders, rewritten, dtype):
        def exact(tensors):
            for name in [name for name in tensors if name.endswith("_scale_inv")]:
                weight = name.removesuffix("_scale_inv")
                tensors[weight] = eight_bit.dequantised(tensors[weight], tensors.pop(name), torch.float32)

        twin = rewritten(exact, quantization_config=None)
        assert losses(folders[0], dtype) == losses(twin, dtype)

    def test_with_the_layers_that_nobody_reads(self, rewritten, folders):
        """A layer behind the decoder's, which the config counts as one that predicts further tokens."""

        def more(tensors):
            last = {name: tensor for name, tensor in tensors.items() if "layers.1." in name}
            tensors |= {name.replace("layers.1.", "layers.2."): tensor.clone() for name, tensor in last.items()}
            tensors["model.layers.0.self_attn.k_scale"] = torch.ones(1)
            tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

        assert losses(rewritten(more, num_nextn_predict_layers=1)) == losses(folders[1])

    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            (None, "has no quantization_config"),
            (FP8 | {"quant_method": "mxfp4"}, "names the format 'mxfp4'"),
            (FP8 | {"quant_method": "modelopt"}, "in the format 'modelopt', which transformers"),
            (FP8 | {"quant_method": "fp9"}, "in the format 'fp9', which transformers"),
            ({name: value for name, value in FP8.items() if name != "quant_method"}, "has no quant_method"),
            (
                FP8 | {"weight_block_size": [64, 64]},
                "have the shape [2, 2], where [256, 256] in blocks of 64 x 64",
            ),
            (FP8 | {"weight_block_size": None}, "have the shape [2, 2], where"),
        ],
        ids=str,
    )
    def test_under_an_edited_config(self, rewritten, settings, says):
        assert says in refusal(rewritten(quantization_config=settings), read=False)

    @pytest.mark.parametrize("scale", ["weight_scale", "scales"])
    def test_with_scales_under_another_name(self, tmp_path, scale):
        line = refusal(eight_bit.make(tmp_path, scale=scale)[0], read=False)
        assert "holds model.layers.0.mlp.down_proj.weight in F8_E4M3 without scales under a name that" in line
        assert f"model.layers.0.mlp.down_proj.{scale} stand beside it" in line

    def test_with_two_scales_for_one_tensor(self, rewritten):
        other = MATRIX.replace("weight", "scale")

        def twice(tensors):
            tensors[other] = 2 * tensors[f"{MATRIX}_scale_inv"]

        line = refusal(rewritten(twice), read=False)
        assert f"holds two scales for {MATRIX}: {MATRIX}_scale_inv and {other}" in line

    def test_without_one_of_the_scales(self, rewritten):
        line = refusal(rewritten(lambda tensors: tensors.pop(f"{MATRIX}_scale_inv")), read=False)
        assert f"holds {MATRIX} in F8_E4M3 without scales" in line

    def test_that_were_dequantised_and_kept_their_scales(self, rewritten):
        line = refusal(rewritten(lambda tensors: tensors.update({MATRIX: tensors[MATRIX].bfloat16()})), read=False)
        assert f"{MATRIX}_scale_inv beside {MATRIX} in BF16" in line

    def test_integers_without_a_format(self, rewritten):
        def integers(tensors):
            tensors[MATRIX] = tensors[MATRIX].to(torch.int8)

        assert f"holds I8 tensors, {MATRIX}" in refusal(rewritten(integers, plain=True), read=False)

    def test_in_pickles(self, folders, tmp_path):
        folder = shutil.copytree(folders[0], tmp_path / "pickled")
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        document = json.loads((folder / "config.json").read_text())
        del document["quantization_config"]
        (folder / "config.json").write_text(json.dumps(document))
        with pytest.raises(ModelError, match="holds F8_E4M3 tensors"):
            load_checkpoint(open_checkpoint(str(folder), trust=Trust(pickles=True)))

    @pytest.mark.parametrize(
        ("method", "package"), [("gptq", "optimum gptqmodel"), ("awq", "gptqmodel"), ("quanto", "optimum-quanto")]
    )
    def test_in_a_format_whose_package_is_missing(self, rewritten, method, package):
        line = refusal(rewritten(quantization_config={"quant_method": method, "bits": 4, "group_size": 128}))
        assert f"in the format '{method}', which needs a package that is not here" in line
        assert f"pip install {package}" in line


class TestPlainTensors:
    def test_that_the_model_does_not_ask_for(self, rewritten):
        for name in (
            "model.layers.0.self_attn.q_a_proj.extra",
            "lm_head.weight_scale",
            "model.norm.bias",
            "transformer.h.0.attn.weight",
            "v2.model.layers.0.mlp.up_proj.weight",
            "model.foo.weight",
        ):
            folder = rewritten(lambda tensors, name=name: tensors.update({name: torch.ones(3)}), plain=True)
            line = refusal(folder, read=False)
            assert f"holds {name}, which the model that its config describes does not ask for" in line

    def test_that_may_be_left(self, rewritten):
        def more(tensors):
            for name in (
                "visual.blocks.0.x",
                "model.vision_tower.layers.0.x",
                "mtp.layers.0.x",
                "value_head.weight",
                "model.score.weight",
                "model.mtp_layers.0.layers.0.x",
                "mtp_dspark.0.x",
                "audio_tower.layers.0.x",
            ):
                tensors[name] = torch.ones(3)

        load_checkpoint(open_checkpoint(str(rewritten(more, plain=True))))

    @pytest.mark.parametrize("key", [None, *unread._PREDICTION_COUNTS])
    def test_of_layers_behind_the_decoders(self, rewritten, key):
        """They are left out as far as the config counts layers that predict further tokens."""

        def more(tensors):
            last = {name: tensor for name, tensor in tensors.items() if "layers.1." in name}
            for number in (2, 3):
                behind = {name.replace("layers.1.", f"layers.{number}."): last[name].clone() for name in last}
                tensors |= behind

        counts = {} if key is None else {key: 1}
        line = refusal(rewritten(more, plain=True, **counts), read=False)
        assert f"holds model.layers.{2 if key is None else 3}.input_layernorm.weight and" in line
        assert "config.json counts 2 layers" in line
        assert "num_nextn_predict_layers" in line
        if key is not None:
            load_checkpoint(open_checkpoint(str(rewritten(more, plain=True, **{key: 2}))))

    @pytest.mark.parametrize("part", ["eh_proj.weight", "enorm.weight", "hnorm.weight", "shared_head.norm.weight"])
    def test_of_a_layer_whose_parts_predict_further_tokens(self, rewritten, part):
        def predicting(tensors):
            tensors |= {f"model.layers.5.{name}": torch.ones(3) for name in (part, "mlp.up_proj.weight")}

        def and_another(tensors):
            predicting(tensors)
            tensors["model.layers.4.mlp.up_proj.weight"] = torch.ones(3)

        load_checkpoint(open_checkpoint(str(rewritten(predicting, plain=True))))
        line = refusal(rewritten(and_another, plain=True), read=False)
        assert "holds model.layers.4.mlp.up_proj.weight, which" in line

    def test_indexers_of_layers_that_share(self, tmp_path):
        build("glm_moe_dsa", layers=3).save_pretrained(tmp_path)
        document = json.loads((tmp_path / "config.json").read_text())
        document["indexer_types"] = ["full", "shared", "full"]
        (tmp_path / "config.json").write_text(json.dumps(document))
        load_checkpoint(open_checkpoint(str(tmp_path)))

    def test_missing_ones_and_what_stands_in_their_place(self, rewritten):
        def renamed(tensors):
            tensors[MATRIX.replace("weight", "qweight")] = tensors.pop(MATRIX)

        line = refusal(rewritten(renamed, plain=True), read=False)
        assert f"has no weights for {MATRIX}; it holds {MATRIX.replace('weight', 'qweight')} instead" in line

    def test_of_another_shape(self, rewritten):
        folder = rewritten(lambda tensors: tensors.update({MATRIX: tensors[MATRIX][:100]}), plain=True)
        assert f"{MATRIX} of" in refusal(folder, read=False)
        assert "has the shape [100, 256], its config makes it [256, 256]" in refusal(folder)

    def test_are_checked_after_the_load_where_it_cannot_be_rehearsed(self, rewritten, monkeypatch):
        for module in (load_module, stream_load):
            monkeypatch.setattr(module, "rehearse", lambda *args, **kwargs: None)
        folder = rewritten(lambda tensors: tensors.update({"model.norm.bias": torch.ones(3)}), plain=True)
        assert "model.norm.bias" in refusal(folder)

    def test_transformers_own_reason_is_passed_on(self, tmp_path):
        checkpoint = open_checkpoint(str(eight_bit.make(tmp_path, kv_lora_rank=512, qk_rope_head_dim=64)[0]))
        reason = r"kv_a_proj_with_mqa\.weight: ValueError: Weight shape \(576, 256\) not divisible"
        with pytest.raises(ModelError, match=reason):
            load_model(checkpoint, find_weights(checkpoint), "auto", Placement())


class TestGitLfsPointers:
    POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"

    @pytest.mark.parametrize(
        "name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"]
    )
    def test_of_a_checkpoint(self, checkpoints, tmp_path, name):
        folder = shutil.copytree(checkpoints["glm_moe_dsa"], tmp_path / "model")
        (folder / name).write_bytes(self.POINTER)
        says = rf"{name}' is a Git LFS pointer: run git lfs pull"
        if name == "config.json":
            with pytest.raises(ModelError, match=says):
                open_checkpoint(str(folder))
            return
        for job in (load_checkpoint, find_weights) if name == "model.safetensors" else (load_tokenizer,):
            with pytest.raises(ModelError, match=says):
                job(open_checkpoint(str(folder)))

    def test_of_pickles_and_of_an_index(self, checkpoints, tmp_path):
        folder = shutil.copytree(checkpoints["glm_moe_dsa"], tmp_path / "model")
        (folder / "model.safetensors").unlink()
        for name in ("pytorch_model.bin", "model.safetensors.index.json"):
            (folder / name).write_bytes(self.POINTER)
            with pytest.raises(ModelError, match=f"{name}' is a Git LFS pointer"):
                load_checkpoint(open_checkpoint(str(folder), trust=Trust(pickles=True)))

    @pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".txt", ".csv", ".jsonl.gz", ".json", ".bin"])
    def test_of_text(self, run_cli, checkpoints, tmp_path, suffix):
        file = tmp_path / f"text{suffix}"
        file.write_bytes(self.POINTER)
        arguments = ["search", "--model", checkpoints["glm_moe_dsa"], "--keep", 0.5, "--window", 48, "-q"]
        code, _, err = run_cli(*arguments, "--dataset", file, "--out", tmp_path / "run")
        assert (code, f"text{suffix}' is a Git LFS pointer: run git lfs pull" in err) == (2, True)

    def test_of_a_plan(self, run_cli, tmp_path):
        (tmp_path / "plan.json").write_bytes(self.POINTER)
        code, _, err = run_cli("export", tmp_path / "plan.json", "--to", "vllm")
        assert (code, "is a Git LFS pointer" in err) == (2, True)


class TestAModelNoBetterThanAGuess:
    def arguments(self, model, text_file, out):
        given = ["search", "--model", model, "--dataset", text_file, "--keep", 1, "--window", 96]
        return [*given, "--windows", 3, "--heldout", 1, "--selfcheck", "--out", out, "-q"]

    def test_is_refused_before_the_search(self, run_cli, checkpoints, text_file, tmp_path, monkeypatch):
        arguments = self.arguments(checkpoints["glm_moe_dsa"], text_file, tmp_path / "run")
        monkeypatch.delenv("INDEXCACHE_SEARCH_UNTRAINED")
        code, _, err = run_cli(*arguments)
        assert (code, "no better than word frequencies" in err, "--untrained" in err) == (2, True, True)
        assert not (tmp_path / "run" / "plan.json").exists()
        for option in ("--untrained", "--no-selfcheck"):
            assert run_cli(*arguments, option, "--resume", "never")[0] == 0

    def test_a_trained_one_is_not(self, run_cli, text_file, tmp_path, monkeypatch):
        monkeypatch.delenv("INDEXCACHE_SEARCH_UNTRAINED")
        code, _, err = run_cli(*self.arguments(EMBEDDED, text_file, tmp_path / "run"))
        assert code == 0, err

    def test_a_trained_one_with_a_layer_of_noise(self, run_cli, text_file, tmp_path, monkeypatch):
        monkeypatch.delenv("INDEXCACHE_SEARCH_UNTRAINED")
        folder = shutil.copytree(EMBEDDED, tmp_path / "noisy")
        tensors = load_file(folder / "model.safetensors")
        noise = torch.Generator().manual_seed(0)
        for name, tensor in tensors.items():
            if tensor.dim() == 2 and "layers." in name and "indexer" not in name:
                tensors[name] = tensor * torch.exp(3 * torch.randn(tensor.shape, generator=noise)).to(tensor.dtype)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        code, _, err = run_cli(*self.arguments(folder, text_file, tmp_path / "run"))
        assert (code, "no better than word frequencies" in err) == (2, True), err


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (ImportError("no kernels"), "install the package"),
        (RuntimeError("expected m1 and m2 to have the same dtype"), "--dtype"),
    ],
)
def test_the_self_check_gives_no_advice_that_cannot_help(checkpoints, error, hint):
    checkpoint = open_checkpoint(str(checkpoints["glm_moe_dsa"]))
    model = load_checkpoint(checkpoint, "float32")

    def fail(*args):
        raise error

    model.lm_head.register_forward_pre_hook(fail)
    with pytest.raises(ModelError) as caught:
        self_check(model, checkpoint, IDS)
    assert hint in caught.value.hint
    assert "--no-selfcheck" not in caught.value.line()


def test_a_checkpoint_with_code_of_its_own_is_told_of_the_option(tmp_path):
    transformers.LlamaConfig().save_pretrained(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    auto_map = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.X"}
    (tmp_path / "config.json").write_text(json.dumps(document | {"model_type": "x", "auto_map": auto_map}))
    with pytest.raises(IndexcacheError) as caught:
        open_checkpoint(str(tmp_path))
    assert "--trust-remote-code" in caught.value.hint
