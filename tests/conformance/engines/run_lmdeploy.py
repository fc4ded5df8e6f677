"""Runs what LMDeploy does with its settings: its option, its overrides of the config, each layer's question."""

from __future__ import annotations

import argparse
import json
import shlex
from importlib.metadata import version

from functions import functions
from task import given
from transformers import AutoConfig

OVERRIDES = ("_override_hf_config_dict", "_overide_hf_config_cfg", "_override_hf_config", "override_hf_config")


def main() -> None:
    """Takes the command as it was pasted."""
    task = given()
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    functions("lmdeploy", "lmdeploy/cli/utils.py", ["hf_overrides"], {"json": json})["hf_overrides"](parser)
    options = parser.parse_args(shlex.split(task.paste)[3:])
    config = AutoConfig.from_pretrained(options.model)
    override = functions("lmdeploy", "lmdeploy/pytorch/config.py", OVERRIDES, {})["override_hf_config"]
    override(config, options.hf_overrides)
    name = "_get_layer_indexer_type"
    asked = functions("lmdeploy", "lmdeploy/pytorch/models/glm_moe_dsa.py", [name], {})[name]
    types = [asked(config, layer) for layer in range(config.num_hidden_layers)]
    task.answer(version("lmdeploy"), "".join("F" if kind == "full" else "S" for kind in types))


if __name__ == "__main__":
    main()
