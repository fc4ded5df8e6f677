"""Runs llama.cpp: its converter on the exported folder, then its library on the GGUF, in float32."""

from __future__ import annotations

import runpy
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from task import given

task = given()
SOURCE = task.source / "vendor" / "llama.cpp"
sys.path[:0] = [str(SOURCE), str(SOURCE / "gguf-py")]


def converted(folder: Path) -> Path:
    """The GGUF that convert_hf_to_gguf.py makes of ``folder``."""
    from conversion import glm

    # It knows tokenizers by a hash of the ids that a text gets, and so by their vocabulary: this one is none that
    # was published. recipes/tiny/README.md says how the tokenizer splits text.
    glm.GlmMoeDsaModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    path = task.place / "model.gguf"
    sys.argv = ["convert_hf_to_gguf.py", str(folder), "--outfile", str(path), "--outtype", "f32"]
    try:
        runpy.run_path(str(SOURCE / "convert_hf_to_gguf.py"), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    return path


def roles(path: Path) -> str:
    """A letter per layer, from the GGUF's own key."""
    import gguf

    field = gguf.GGUFReader(path).fields["glm-dsa.attention.indexer.types"]
    return "".join("F" if full else "S" for full in field.contents())


def logits(path: Path, windows: np.ndarray) -> np.ndarray:
    """[windows, tokens, vocabulary] of the library, flash attention off, caches in float32."""
    import llama_cpp as llama

    llama.llama_backend_init()
    settings = llama.llama_model_default_params()
    settings.n_gpu_layers = 0
    model = llama.llama_model_load_from_file(str(path).encode(), settings)
    if not model:
        raise RuntimeError(f"llama.cpp did not load {path.name}")
    tokens = windows.shape[1]
    words = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    rows = []
    for window in windows:
        context = llama.llama_init_from_model(model, context_settings(llama, tokens))
        batch = llama.llama_batch_init(tokens, 0, 1)
        batch.n_tokens = tokens
        for place, token in enumerate(window):
            batch.token[place], batch.pos[place], batch.logits[place] = int(token), place, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        if llama.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        places = (llama.llama_get_logits_ith(context, place) for place in range(tokens))
        rows.append(np.stack([np.ctypeslib.as_array(place, (words,)).copy() for place in places]))
        llama.llama_batch_free(batch)
        llama.llama_free(context)
    return np.stack(rows)


def context_settings(llama, tokens: int):
    """Of a context that holds one window."""
    settings = llama.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = tokens
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = llama.GGML_TYPE_F32
    settings.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return settings


def main() -> None:
    """Converts and runs the exported folder."""
    path = converted(task.folder)
    task.answer(version("llama-cpp-python"), roles(path), logits(path, task.windows))


if __name__ == "__main__":
    main()
