"""Tiny random checkpoints of each family and the text they are measured on."""

import functools
import gc
import json
import os
import shutil
from collections.abc import Mapping

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"
# Most models here are random, and predict nothing.
os.environ["INDEXCACHE_SEARCH_UNTRAINED"] = "1"
# Tried on a model of every family by tests of its own; a search that is to begin with it says --selfcheck.
os.environ["INDEXCACHE_SEARCH_SELFCHECK"] = "0"
# A fingerprint takes as long as some of these searches: tests that are about one say --fingerprint.
os.environ["INDEXCACHE_SEARCH_FINGERPRINT"] = "0"
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"

import pytest
from filelock import FileLock

from indexcache.system.launching import work_apart

pytest_plugins = ["reliability"]


def pytest_collectstart(collector):
    """Sets up the libraries in processes that run tests; one that only shares them out imports neither."""
    _set_up()


@functools.cache
def _set_up():
    import torch
    import transformers

    # A command sets this in the environment before it imports transformers, which is too late here.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # Models this small run no faster on more threads, and far slower where other programs want the cores.
    torch.set_num_threads(1)
    # Kernels are read when they are imported: without a GPU, Triton's interpreter is to run them.
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items):
    """Skips, by name, tests of families that the installed transformers does not have."""
    import transformers
    from random_models import LACKING

    for item in items:
        family = getattr(item, "callspec", None) and item.callspec.params.get("family")
        if isinstance(family, str) and family in LACKING:
            reason = f"transformers {transformers.__version__} has no {family}"
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish():
    """What was imported stays: garbage collections need not go through it, here and in every forked child."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()  # or libraries complain of what is left when the process ends


@pytest.fixture(autouse=True)
def _no_process_left_to_work_apart():
    """A command that is one process's job says so for the rest of its process; here that is all tests'."""
    yield
    work_apart(False)


def save(model, folder):
    from random_models import EMBEDDED

    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Gives a folder by name, filled by ``make(folder)`` once, whichever of the workers asks first."""

    def once(name, make):
        together = tmp_path_factory.getbasetemp()
        if "PYTEST_XDIST_WORKER" in os.environ:
            together = together.parent
        folder, done = together / name, together / f"{name}.done"
        with FileLock(together / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return once


class Checkpoints(Mapping):
    """Saved random checkpoints by name, one made when it is first asked for: six layers of each family, and
    an eight-layer GLM. Nobody writes to them: tests that run at the same time read them too.
    """

    def __init__(self, made_once):
        from random_models import FAMILIES, build

        self._made_once = made_once
        self._models = {name: functools.partial(build, name) for name in FAMILIES}
        self._models["eight"] = functools.partial(build, "glm_moe_dsa", layers=8, seed=3)

    def __getitem__(self, name):
        import torch

        model = self._models[name]
        with torch.random.fork_rng(devices=[]):  # a test's own random numbers do not depend on who came first
            return self._made_once(name, lambda folder: save(model(), folder))

    def __iter__(self):
        return iter(self._models)

    def __len__(self):
        return len(self._models)


@pytest.fixture(scope="session")
def checkpoints(made_once):
    return Checkpoints(made_once)


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """A checkpoint without indexers."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=4096,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return save(transformers.LlamaForCausalLM(config), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def embedded_text():
    """The embedded calibration documents."""
    from random_models import EMBEDDED

    with (EMBEDDED / "calibration.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="session")
def text_file(made_once, embedded_text):
    """Forty short documents as JSON lines; at one path for all workers, as plans that they share name it."""

    def make(folder):
        with (folder / "documents.jsonl").open("w", encoding="utf-8") as file:
            for number in range(40):
                text = embedded_text[number % 18][1000 * number : 1000 * number + 900]
                file.write(json.dumps({"text": text}) + "\n")

    return made_once("text", make) / "documents.jsonl"


@pytest.fixture(scope="session")
def tokenizer():
    import transformers
    from random_models import EMBEDDED

    return transformers.AutoTokenizer.from_pretrained(EMBEDDED)


@pytest.fixture
def run_cli(capsys):
    """Runs the command line in this process: exit code, stdout, stderr."""
    from indexcache.cli import main

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def searched(made_once, checkpoints, text_file, tmp_path_factory):
    """A finished run on the eight-layer model, searched down to one site; who changes it copies it first.

    Each worker has a copy: eval renders the report beside a plan anew.
    """

    def make(out):
        from indexcache.cli import main

        arguments = ["search", "--model", checkpoints["eight"], "--dataset", text_file, "--keep", "0.5", "--all"]
        arguments += ["--window", 48, "--windows", 6, "--heldout", 4, "--baselines", "curve"]
        arguments += ["--out", out, "--quiet"]
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        assert not stop.value.code, "the search that other tests start from failed"

    return shutil.copytree(made_once("searched", make), tmp_path_factory.mktemp("searched") / "run")


@pytest.fixture(scope="session")
def probe_search(checkpoints, text_file):
    """What a short search on the eight-layer model is given whose windows are long enough for probes."""
    arguments = ["search", "--model", checkpoints["eight"], "--dataset", text_file, "--keep", "0.8"]
    return [*arguments, "--window", 240, "--windows", 2, "--heldout", 3, "--probes", 1]


@pytest.fixture(scope="session")
def probed(made_once, probe_search):
    """The finished run of that search; who changes it copies it first."""

    def make(out):
        from indexcache.cli import main

        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in [*probe_search, "--out", out, "--quiet"]])
        assert not stop.value.code, "the search that other tests start from failed"

    return made_once("probed", make)


@pytest.fixture
def paper(monkeypatch):
    """Searches and checks whose losses come from a formula: all is as it is but the model."""
    from paper_model import on_paper

    return on_paper(monkeypatch)
