"""Runs what SGLang does with its settings: get_config with the overrides, then each layer's question."""

from __future__ import annotations

import argparse
import json
import shlex
from importlib.metadata import version
from types import SimpleNamespace

from functions import functions
from task import given
from transformers import AutoConfig, PretrainedConfig

# What get_config asks of others about a checkpoint in a local folder, and that is no GGUF and not of Mistral's.
LOCAL = {
    "check_gguf_file": lambda model: False,
    "resolve_runai_obj_uri": lambda model: model,
    "is_remote_url": lambda model: False,
    "is_mistral_model": lambda model: False,
    "get_model_config_parser": lambda name: SimpleNamespace(
        parse=lambda model, **more: AutoConfig.from_pretrained(model)
    ),
    "DeepseekV41Config": type("DeepseekV41Config", (), {}),
    "PretrainedConfig": PretrainedConfig,
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": {},
}
QUESTIONS = ("_hf_arch", "_hf_attr", "is_deepseek_dsa", "dsa_layer_skips_topk")


def main() -> None:
    """Takes the command as it was pasted."""
    task = given()
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-path")
    parser.add_argument("--json-model-override-args")
    options = parser.parse_args(shlex.split(task.paste)[3:])
    file = "sglang/srt/utils/hf_transformers/config.py"
    get_config = functions("sglang", file, ["get_config"], LOCAL)["get_config"]
    overrides = json.loads(options.json_model_override_args)
    config = get_config(options.model_path, trust_remote_code=False, model_override_args=overrides)
    asked = functions("sglang", "sglang/srt/configs/model_config.py", QUESTIONS, {})
    skips = [asked["dsa_layer_skips_topk"](config, layer) for layer in range(config.num_hidden_layers)]
    task.answer(version("sglang"), "".join("S" if skip else "F" for skip in skips))


if __name__ == "__main__":
    main()
