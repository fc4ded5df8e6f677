"""What a benchmark of searches runs on: a model, windows and probes apart by document, and counted searches."""

import argparse
import hashlib
import json
import lzma
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from batched_losses import BatchedLosses, LayerStack
from bench_results import Book, Deadline, run_parts
from bench_results import add_options as add_result_options

from indexcache.calibrate.probes import KINDS, make_probes
from indexcache.calibrate.sources import Documents, TextSource
from indexcache.calibrate.windows import WindowRequest, pack
from indexcache.commands.job.prepare import refinement_windows
from indexcache.dsa.checkpoint.config import Checkpoint, load_tokenizer, open_checkpoint
from indexcache.dsa.checkpoint.load import Placement, load_model
from indexcache.dsa.checkpoint.stored.weights import find_weights
from indexcache.dsa.model.costs import layer_costs
from indexcache.dsa.model.evaluator import COST_WINDOWS
from indexcache.errors import DatasetError, WindowError
from indexcache.evaluate import CALIBRATION, HELD_OUT, PROBES, REFINEMENT, PatternWindowLosses, Request
from indexcache.pattern import Pattern, kept_sites
from indexcache.recipes.schema import Recipe, read_recipe
from indexcache.search.cost import LayerCount, Shape
from indexcache.search.goal import Goal, Method
from indexcache.search.losses import Difference, Evaluation, mean_difference
from indexcache.search.objective import scored
from indexcache.search.run.records import JournalContent
from indexcache.search.run.replay import ReplayedEvaluator
from indexcache.search.search import Findings, Problem, SearchProgress, choose
from indexcache.search.strategies.greedy import candidate_evaluations

ROOT = Path(__file__).resolve().parents[2]
HELD_OUT_PART, REFINEMENT_PART = "held out", "refinement"
_FEW_PATTERNS = 4
_DOCUMENT_END = "\n\x1e\n"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the model, the text and how many windows."""
    parser.add_argument("--model", default=str(ROOT / "recipes/tiny"), help="folder of a checkpoint")
    parser.add_argument(
        "--text", nargs="+", type=Path, default=[],
        help="files of documents: .jsonl, or .txt.xz with a line of U+001E between two; the demo's by default",
    )  # fmt: skip
    parser.add_argument("--window", type=int, default=256, help="tokens; 256 by default")
    parser.add_argument("--windows", type=int, default=32, help="W, of each calibration set; 32 by default")
    parser.add_argument("--sets", type=int, default=3, help="disjoint calibration sets; 3 by default")
    parser.add_argument("--heldout", type=int, default=96, help="held-out windows; 96 by default")
    parser.add_argument("--refine-windows", type=int, default=32, help="refinement's; 32 by default")
    parser.add_argument("--probe-window", type=int, help="tokens of held-out probes; by default as --window")
    parser.add_argument("--probes", type=int, default=8, help="held-out probes of each kind; 8 by default")
    parser.add_argument("--keep", type=float, default=0.25, help="fraction of sites kept; 0.25 by default")
    parser.add_argument(
        "--surrogate", default=Recipe().surrogate, choices=["fisher", "error", "none"],
        help="layer costs of the default settings; by default the program's",
    )  # fmt: skip
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, with those that follow from others."""
    options = parser.parse_args()
    options.probe_window = options.probe_window or options.window
    return options


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """What results depend on: the weights, and all options but which parts, how long, and where to write."""
    digest = hashlib.sha256()
    for path in sorted(Path(options.model).glob("*.safetensors")):
        digest.update(path.read_bytes())
    return {"weights": digest.hexdigest()} | {
        name: [str(entry) for entry in value] if isinstance(value, list) else value
        for name, value in vars(options).items()
        if name not in ("parts", "seconds", "out")
    }


@dataclass(frozen=True)
class Texts:
    """Windows, or probes, by part; a part's are of documents that no other part has.

    Args:
        name: of them all.
        losses: of patterns on all of them.
        parts: of each part, the numbers of its windows.
        documents: of each window.
        kinds: of each probe; empty for text.
    """

    name: str
    losses: BatchedLosses
    parts: dict[str, tuple[int, ...]]
    documents: tuple[int, ...]
    kinds: tuple[str, ...] = ()

    def evaluation(self, pattern: Pattern, part: str) -> Evaluation:
        """The pattern on a part; what chooses is its divergence."""
        numbers = self.parts[part]
        losses = self.losses([pattern], numbers)[0]
        windows = tuple(
            scored("expected-loss", loss.per(self.losses.labels_of(number)))
            for number, loss in zip(numbers, losses, strict=True)
        )
        return Evaluation(pattern, windows, tuple(self.documents[number] for number in numbers))

    def increase(self, pattern: Pattern, over: Pattern, part: str, figure: str = "loss") -> Difference:
        """How much larger a figure of ``WindowLoss``, a label, is under ``pattern`` than ``over``: paired."""
        high, low = self.evaluation(pattern, part), self.evaluation(over, part)
        pairs = zip(high.windows, low.windows, strict=True)
        differences = [getattr(a.losses, figure) - getattr(b.losses, figure) for a, b in pairs]
        return mean_difference(differences, high.documents)


@dataclass(frozen=True)
class Outcome:
    """A search's plan and what it took.

    Args:
        pattern: at the budget.
        order: sites in their order of removal.
        window_evaluations: pattern x window pairs asked for.
        layer_windows: decoder layers that they take in the program.
        decided: removals that were told from every rival.
    """

    pattern: str
    order: tuple[int, ...]
    window_evaluations: int
    layer_windows: int
    decided: int = 0

    @property
    def plan(self) -> Pattern:
        return Pattern(self.pattern)


class Group(NamedTuple):
    """Windows that a search calls by their place: ``numbers[place]`` of ``texts``.

    Losses of a few patterns are measured on all windows ``ahead``, where a GPU would idle otherwise; what is
    counted is what is asked for.
    """

    texts: Texts
    numbers: Sequence[int]
    ahead: Sequence[int] = ()


class Answers:
    """Measures for a search what its groups' windows are."""

    def __init__(self, groups: dict[str, Group]) -> None:
        self._groups = groups

    def sweep(self, requests: Sequence[Request]) -> list[PatternWindowLosses]:
        return [self._losses(request) for request in requests]

    def _losses(self, request: Request) -> PatternWindowLosses:
        texts, numbers, ahead = self._groups[request.group]
        if len(request.patterns) <= _FEW_PATTERNS and not request.last_token:
            texts.losses(request.patterns, ahead)
        chosen = [numbers[window] for window in request.windows]
        return texts.losses(request.patterns, chosen, request.last_token)

    def pieces(self, requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
        yield requests

    def follow(self, pattern: Pattern) -> None:
        """Nothing is kept between evaluations but losses."""


@dataclass
class Setting:
    """A loaded model with everything that it is measured on."""

    options: argparse.Namespace
    checkpoint: Checkpoint
    tokenizer: Any
    layers: LayerStack
    check: Callable[[], None]
    cost_matrices: dict[tuple[str, str, int], Any] = field(default_factory=dict)
    cost_runs: dict[str, int] = field(default_factory=dict)
    """Layers and attentions that a window's costs take, by surrogate."""

    @property
    def sites(self) -> int:
        return len(self.checkpoint.site_layers)

    @property
    def kept(self) -> int:
        return kept_sites(self.sites, self.options.keep)

    @property
    def full(self) -> Pattern:
        return Pattern.all_full(self.sites)

    @property
    def uniform(self) -> Pattern:
        return Pattern.uniform(self.sites, self.kept)

    @property
    def sets(self) -> list[str]:
        return [f"set {number}" for number in range(self.options.sets)]

    @property
    def few(self) -> int:
        """W / 8 windows, at least one."""
        return max(1, self.options.windows // 8)

    @property
    def algorithm_1_evaluations(self) -> int:
        """Pattern x window pairs that Algorithm 1 takes on W windows."""
        return candidate_evaluations(self.sites, self.kept) * self.options.windows

    @cached_property
    def _documents(self) -> dict[str, list[str]]:
        """The documents of each part: each goes to the part that is furthest from its share of the text."""
        options = self.options
        wanted = {HELD_OUT_PART: options.heldout, REFINEMENT_PART: options.refine_windows}
        wanted |= dict.fromkeys(self.sets, options.windows)
        parts: dict[str, list[str]] = {part: [] for part in wanted}
        size = dict.fromkeys(wanted, 0)
        for text in read_texts(options.text or [demo_text()]):
            part = min(wanted, key=lambda name: (size[name] / wanted[name], len(parts[name])))
            parts[part].append(text)
            size[part] += len(text)
        return parts

    def _packed(self, length: int, counts: dict[str, int], weighs_keys: bool) -> Texts:
        ids: list[list[int]] = []
        documents: list[int] = []
        parts: dict[str, tuple[int, ...]] = {}
        for number, (part, count) in enumerate(counts.items()):
            try:
                windows = pack(self._documents[part], self.tokenizer, WindowRequest(length, count, 0))
            except DatasetError as error:
                raise SystemExit(
                    f"{part}: {error}\ngive more text with --text, or ask for fewer windows"
                ) from error
            parts[part] = tuple(range(len(ids), len(ids) + count))
            ids += windows.calibration.tolist()
            documents += [number * 1_000_000 + document for document in windows.documents(CALIBRATION)]
        width = self.checkpoint.selection_width
        losses = BatchedLosses(self.layers, ids, width, weighs_keys=weighs_keys, on_batch=self.check)
        return Texts("text", losses, parts, tuple(documents))

    @cached_property
    def text(self) -> Texts:
        """Calibration sets, refinement and held-out windows."""
        options = self.options
        counts = dict.fromkeys(self.sets, options.windows)
        counts |= {REFINEMENT_PART: options.refine_windows, HELD_OUT_PART: options.heldout}
        return self._packed(options.window, counts, weighs_keys=True)

    @cached_property
    def probes(self) -> Texts | None:
        """Held-out probes, in the text of the held-out windows' documents; None where windows are too short."""
        count = self.options.probes
        return self._probes(self.options.probe_window, {HELD_OUT_PART: count}, seed=0) if count else None

    @cached_property
    def mixed_probes(self) -> Texts | None:
        """A probe beside every calibration and refinement window, in their documents' text."""
        parts = {part: -(-len(self.text.parts[part]) // len(KINDS)) for part in (*self.sets, REFINEMENT_PART)}
        return self._probes(self.options.window, parts, seed=1)

    def _probes(self, length: int, counts: dict[str, int], seed: int) -> Texts | None:
        probes, parts = [], {}
        for part, count in counts.items():
            try:
                made = make_probes(self.tokenizer, self._documents[part], length, count, seed)
            except (WindowError, DatasetError) as error:
                print(f"no probes of {length} tokens: {error}", flush=True)
                return None
            random.Random(seed).shuffle(made)
            parts[part] = tuple(range(len(probes), len(probes) + len(made)))
            probes += made
        losses = BatchedLosses(
            self.layers,
            [probe.token_ids for probe in probes],
            self.checkpoint.selection_width,
            [probe.answers for probe in probes],
            on_batch=self.check,
        )
        kinds = tuple(probe.kind for probe in probes)
        return Texts("probes", losses, parts, tuple(probe.document for probe in probes), kinds)

    @cached_property
    def demo(self) -> Texts:
        """The demo's own windows, packed as the demo packs them."""
        recipe = read_recipe("tiny")
        source = Documents(TextSource(str(demo_text())), self.tokenizer, recipe.seed)
        assert recipe.window, "the demo's recipe says how long its windows are"
        windows = pack(
            source,
            self.tokenizer,
            WindowRequest(
                recipe.window, int(recipe.windows), recipe.heldout, recipe.seed, refinement_windows(recipe)
            ),
        )
        ids: list[list[int]] = []
        documents: list[int] = []
        parts: dict[str, tuple[int, ...]] = {}
        for part, group in (("demo", CALIBRATION), (REFINEMENT_PART, REFINEMENT), (HELD_OUT_PART, HELD_OUT)):
            rows = windows.group(group).tolist()
            parts[part] = tuple(range(len(ids), len(ids) + len(rows)))
            ids += rows
            documents += windows.documents(group)
        losses = BatchedLosses(self.layers, ids, self.checkpoint.selection_width, on_batch=self.check)
        return Texts("demo", losses, parts, tuple(documents))

    @property
    def demo_is_apart(self) -> bool:
        """Whether the demo's text is none of that which the held-out windows are from."""
        return bool(self.options.text) and demo_text() not in [path.resolve() for path in self.options.text]

    def method(self, **changes: Any) -> Method:
        """The default settings with ``changes``; layer costs are put in by ``search``."""
        defaults = {"surrogate": self.options.surrogate, "standard_errors": Recipe().standard_errors}
        return Method(**{**defaults, **changes})

    def search(
        self, method: Method, texts: Texts, numbers: Sequence[int], part: str = "", to_one: bool = False
    ) -> Outcome:
        """Searches on the windows ``numbers`` of ``texts``.

        Args:
            method: how.
            texts: whose windows they are.
            numbers: of the calibration windows.
            part: whose probes go with them, for a mix.
            to_one: search on to one full site, for the whole order; the plan is the same.
        """
        if method.surrogate != "none":
            costs = [self.costs(texts, number, method.surrogate) for number in numbers[:COST_WINDOWS]]
            method = Method(**{**vars(method), "layer_costs": costs})
        groups = {CALIBRATION: self._group(texts, numbers, texts.parts.get(part, numbers))}
        if method.refine_rounds:
            refinement = texts.parts[REFINEMENT_PART]
            groups[REFINEMENT] = self._group(texts, refinement, refinement)
        if method.objective == "mix" and self.mixed_probes is not None:
            mixed = self.mixed_probes.parts
            beside = [*mixed[part][: len(numbers)], *mixed[REFINEMENT_PART]]
            groups[PROBES] = self._group(self.mixed_probes, beside, mixed[part])
        measure, findings = self._run(groups, method, to_one)
        return Outcome(
            str(findings.chosen.pattern),
            tuple(step.removed for step in findings.steps),
            measure.window_evaluations,
            measure.count.layer_windows,
            sum(not step.undecided for step in findings.steps),
        )

    def _group(self, texts: Texts, numbers: Sequence[int], ahead: Sequence[int]) -> Group:
        return Group(texts, numbers, ahead if self.layers.on_gpu else ())

    def _run(self, groups: dict[str, Group], method: Method, to_one: bool) -> tuple[ReplayedEvaluator, Findings]:
        sizes = {name: len(group.numbers) for name, group in groups.items()}
        shape = Shape(self.checkpoint.site_layers, self.checkpoint.layers, sizes[CALIBRATION], 0)
        measure = ReplayedEvaluator(JournalContent(), LayerCount(shape), Answers(groups))
        problem = Problem(
            measure,
            labels={
                name: [group.texts.losses.labels_of(number) for number in group.numbers]
                for name, group in groups.items()
            },
            documents={
                name: [group.texts.documents[number] for number in group.numbers] for name, group in groups.items()
            },
            sites=self.sites,
            goal=Goal(keep=self.options.keep, to_one=to_one),
            method=method,
        )
        return measure, choose(problem, SearchProgress(step=lambda step: measure.follow(step.pattern)))

    def costs(self, texts: Texts, number: int, surrogate: str) -> Any:
        """Layer costs ``[sites][sites]`` of a window, by the program's own pass."""
        key = (surrogate, texts.name, number)
        if key not in self.cost_matrices:
            self.check()
            ids = texts.losses.ids[number].tolist()
            width = self.checkpoint.selection_width
            measured = layer_costs(self.layers.model, self.layers.switch, [ids], surrogate, width)
            self.cost_matrices[key] = measured.windows[0]
            self.cost_runs[surrogate] = measured.layer_runs + measured.attention_runs
        return self.cost_matrices[key]


def demo_text() -> Path:
    """The text that the demo calibrates on."""
    return ROOT / "recipes/tiny/calibration.jsonl"


def read_texts(paths: Sequence[Path]) -> list[str]:
    """The distinct documents of some files, shuffled."""
    texts: list[str] = []
    for path in paths:
        if path.suffix == ".jsonl":
            texts += [json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()]
        else:
            with lzma.open(path, "rt", encoding="utf-8", newline="\n") as file:
                texts += file.read().split(_DOCUMENT_END)
    texts = [text for text in dict.fromkeys(texts) if text.strip()]
    random.Random(0).shuffle(texts)
    return texts


def open_setting(options: argparse.Namespace, check: Callable[[], None]) -> Setting:
    """Loads the model in fp32 onto the device."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    checkpoint = open_checkpoint(options.model)
    model = load_model(checkpoint, find_weights(checkpoint), "float32", Placement()).to(options.device)
    setting = Setting(
        options, checkpoint, load_tokenizer(checkpoint), LayerStack(model, checkpoint.site_layers), check
    )
    name = torch.cuda.get_device_name() if setting.layers.on_gpu else f"{torch.get_num_threads()} threads"
    print(
        f"{options.model}: {setting.sites} sites to {setting.kept}, windows of {options.window} tokens, "
        f"{options.heldout} held out; {options.device}, {name}",
        flush=True,
    )
    return setting


def run(
    parser: argparse.ArgumentParser, bench: Callable[[Setting, Book], Any], parts: Sequence[str], out: str
) -> None:
    """Reads the command line and measures what it asks for; each of ``parts`` is a method of ``bench``."""
    add_result_options(parser, parts, out)
    options = parsed(parser)
    deadline = Deadline(options.seconds)
    book = Book(options.out, settings_of(options))
    measuring = bench(open_setting(options, deadline.check), book)
    run_parts({name: getattr(measuring, f"{name}_part") for name in parts}, options.parts, book, deadline)
