"""Runs what TokenSpeed does with its settings: the overrides of the config, then each layer's question."""

from __future__ import annotations

import argparse
import json
import shlex
from importlib.metadata import version

from functions import functions
from task import given
from transformers import AutoConfig


def main() -> None:
    """Takes the command as it was pasted."""
    task = given()
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--hf-overrides", type=json.loads)
    options = parser.parse_args(shlex.split(task.paste)[2:])
    config = AutoConfig.from_pretrained(options.model)
    config.update(options.hf_overrides)  # as its get_config does, among much that asks for its own classes
    name = "_glm_dsa_skip_indexer_topk"
    asked = functions("tokenspeed", "tokenspeed/runtime/models/glm5.py", [name], {})[name]
    skips = [asked(config, layer) for layer in range(config.num_hidden_layers)]
    task.answer(version("tokenspeed"), "".join("S" if skip else "F" for skip in skips))


if __name__ == "__main__":
    main()
