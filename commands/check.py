"""The check command: which pattern a running server runs, by what it predicts where patterns differ."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import GateError, IndexcacheError, PlanError, ServerError
from ..search.export.engines import ENGINES
from ..search.export.settings import export
from ..search.export.support import Serving
from ..search.fingerprint.document import Fingerprint, Prefix, fingerprint_file, plan_sha256, read_fingerprint
from ..search.fingerprint.known import ALL_FULL
from ..search.fingerprint.trial import Trial, Verdict
from ..search.plan.file import plan_file, read_plan
from ..search.plan.schema import Plan
from ..system.console import Reporter
from ..system.web.site import Site
from .check_answers import Reply, distinct_texts
from .check_server import Manner, Served, Server, check_tokenizer, open_server
from .check_settings import KEY_VARIABLE, CheckSettings

# Nats a token: beyond it no pattern explains an answer, and hardly any fault of an engine does.
_OTHER_MODEL = 3.0
# Spreads: no server is farther from the pattern that it runs, mostly.
_AS_ITS_OWN = 1.0
_FEW = 10


@dataclass(frozen=True)
class CheckOutcome:
    """What a server runs, as far as its answers show.

    Args:
        url: its address.
        served: what it says of itself.
        manner: how it was asked.
        fingerprint: that it was held against.
        verdict: and the evidence.
        asked: requests that were sent for it.
        advice: what to do about it, a sentence; "" where nothing is to be done.
    """

    url: str
    served: Served
    manner: Manner
    fingerprint: Fingerprint
    verdict: Verdict
    asked: int
    advice: str

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        verdict, model = self.verdict, self.fingerprint.model.id
        if verdict.kind == "plan":
            others = ", ".join(pattern.name for pattern in self.fingerprint.alike if not pattern.near)
            return "the server runs the plan" + (f", or {others}, which no prefix tells from it" if others else "")
        if verdict.kind == "other":
            ignored = ": the override was ignored" if verdict.pattern == ALL_FULL else ", not the plan"
            return f"the server runs {verdict.pattern}{ignored}"
        if verdict.kind == "none":
            return f"the server runs none of the known patterns of {model}: its predictions are others"
        if self.fingerprint.hides(ALL_FULL):
            return "not sure: no prefix of the fingerprint tells the plan from all full"
        return f"not sure: {verdict.evidence.requests} answers do not tell which pattern the server runs"

    def hold(self) -> None:
        """Ends what does not run the plan for sure.

        Raises:
            GateError: says what it runs instead.
        """
        if self.verdict.kind != "plan":
            raise GateError(self.sentence, hint=self.advice)


def check(path: Path, settings: CheckSettings, reporter: Reporter) -> CheckOutcome:
    """Asks a server until its answers show which pattern it runs.

    Raises:
        PlanError: no plan, or no fingerprint of it beside it.
        ServerError: the server cannot be asked; names why.
    """
    path = plan_file(path)
    plan = read_plan(path)
    fingerprint = fingerprint_of(plan, path)
    site = Site(settings.url, settings.key, KEY_VARIABLE, settings.seconds)
    if site.sends_key_openly:
        reporter.warn(f"{KEY_VARIABLE} is sent unencrypted: use https where others can listen")
    reporter.doing(f"asking {site.url} what it serves")
    server = open_server(site, settings.model, settings.engine, fingerprint.top, settings.inside)
    check_tokenizer(server, fingerprint)
    reporter.say(f"asking {site.url} for {server.served.model}, at most {settings.max_requests} times")
    examination = _Examination(server, fingerprint, settings.max_requests, reporter)
    verdict = examination.run()
    # That an override was ignored is what a check is for: where that cannot be seen, nothing is proven.
    if verdict.kind == "plan" and fingerprint.hides(ALL_FULL):
        verdict = Verdict("unsure", None, verdict.evidence)
    manner = server.manner or Manner(by_ids=True)
    advice = _advice(plan, path, server.served, fingerprint, verdict)
    return CheckOutcome(str(site.url), server.served, manner, fingerprint, verdict, examination.asked, advice)


def fingerprint_of(plan: Plan, path: Path) -> Fingerprint:
    """The fingerprint beside the plan in the file ``path``.

    Raises:
        PlanError: there is none, or it is of another plan.
    """
    file = fingerprint_file(path)
    fingerprint = read_fingerprint(file)
    if fingerprint.model.plan_sha256 != plan_sha256(plan):
        raise PlanError(
            f"{str(file)!r} is of another plan than {str(path)!r}",
            hint="indexcache eval PLAN --fingerprint makes the plan's own",
        )
    return fingerprint


class _Examination:
    """A server being asked, prefix by prefix, until a trial is over."""

    def __init__(self, server: Server, fingerprint: Fingerprint, limit: int, reporter: Reporter) -> None:
        self._server, self._limit, self._reporter = server, limit, reporter
        self._fingerprint = _fitting(fingerprint, server)
        self._first: dict[tuple[int, ...], Reply] = {}
        self.asked = 0

    def run(self) -> Verdict:
        """The verdict.

        Raises:
            ServerError: the server cannot be asked any more.
        """
        # Most servers are told by the first answers that a verdict needs.
        self._reporter.begin(min(self._limit, _FEW), "requests", guessed=True)
        # The first answer shows how the server wants to be asked, and that decides which prefixes can be used.
        with_text = tuple(prefix for prefix in self._fingerprint.prefixes if prefix.text is not None)
        askable = self._fingerprint.model_copy(update={"prefixes": with_text or self._fingerprint.prefixes})
        prefix = askable.prefixes[Trial(askable, self._limit).next_prefix() or 0]
        self._first[prefix.tokens] = self._ask(prefix)
        self._fingerprint = _tellable(self._fingerprint, self._server.manner, self._first[prefix.tokens])
        trial, answered = Trial(self._fingerprint, self._limit), set[int]()
        while (number := trial.next_prefix()) is not None:
            prefix = self._fingerprint.prefixes[number]
            reply = self._first.pop(prefix.tokens, None) or self._ask(prefix)
            self._observe(trial, answered, number, reply)
        verdict = trial.verdict()
        if verdict is None:
            raise ServerError("no prefix is left to ask for", hint="indexcache eval PLAN --fingerprint with more")
        return verdict

    def _ask(self, prefix: Prefix) -> Reply:
        if self.asked >= self._limit + 1:
            raise ServerError(f"{self.asked} requests were not enough", hint="--max-requests allows more")
        reply = self._server.ask(prefix)
        self.asked += 1
        self._reporter.advance(1)
        return reply

    def _observe(self, trial: Trial, answered: set[int], number: int, reply: Reply) -> None:
        """Gives a trial an answer, and what it says of shorter prefixes within."""
        prefixes, top = self._fingerprint.prefixes, self._fingerprint.top
        manner = self._server.manner
        trial.observe(
            number, dict(reply.logprobs) if manner and manner.generates else _likeliest(reply.logprobs, top)
        )
        answered.add(number)
        for other, shorter in enumerate(prefixes):
            length = len(shorter.tokens)
            if other in answered or length not in reply.inside or trial.verdict() is not None:
                continue
            if prefixes[number].tokens[:length] == shorter.tokens:
                trial.observe(other, _likeliest(reply.inside[length], top))
                answered.add(other)


def _likeliest(logprobs: Mapping[int, float], count: int) -> dict[int, float]:
    """The likeliest tokens: beside them servers give the one that was sampled, or that stood there."""
    return dict(sorted(logprobs.items(), key=lambda pair: -pair[1])[:count])


def _fitting(fingerprint: Fingerprint, server: Server) -> Fingerprint:
    """The fingerprint less prefixes that are longer than the server's context.

    Raises:
        ServerError: none fits.
    """
    context = server.served.context
    if context is None:
        return fingerprint
    fitting = tuple(prefix for prefix in fingerprint.prefixes if len(prefix.tokens) + 1 <= context)
    if not fitting:
        shortest = min(len(prefix.tokens) for prefix in fingerprint.prefixes)
        raise ServerError(
            f"{server.site.url} takes {context} tokens, and the shortest prefix to ask for has {shortest}",
            hint=f"start it with a context of {shortest + 1} tokens at least",
        )
    return fingerprint.model_copy(update={"prefixes": fitting})


def _tellable(fingerprint: Fingerprint, manner: Manner | None, reply: Reply) -> Fingerprint:
    """What of a fingerprint can be asked in the server's manner: texts, and tokens that texts tell apart.

    Raises:
        ServerError: nothing.
    """
    prefixes = []
    for prefix in fingerprint.prefixes:
        if manner is not None and not manner.by_ids and prefix.text is None:
            continue
        texts = distinct_texts(prefix)
        candidates = tuple(
            candidate for candidate in prefix.candidates if not reply.by_text or texts[candidate.text] is not None
        )
        if candidates:
            prefixes.append(prefix.model_copy(update={"candidates": candidates}))
    if not prefixes:
        raise ServerError("the server names tokens by texts, and no prefix has tokens that texts tell apart")
    return fingerprint.model_copy(update={"prefixes": tuple(prefixes)})


def _near(fingerprint: Fingerprint, verdict: Verdict) -> str | None:
    """The pattern one swap away from the plan that explains the answers as well as a server's own would."""
    evidence = verdict.evidence
    likeliest = max(fingerprint.patterns, key=lambda pattern: evidence.log_ratios[pattern.name])
    return likeliest.name if likeliest.near and evidence.deviations < _AS_ITS_OWN else None


def _advice(plan: Plan, path: Path, served: Served, fingerprint: Fingerprint, verdict: Verdict) -> str:
    """What to look at where a server does not run the plan; "" where it does."""
    if verdict.kind == "plan":
        return ""
    if verdict.kind == "unsure":
        return (
            "ask again with more --max-requests; indexcache eval PLAN --fingerprint may find more telling prefixes"
        )
    if verdict.kind == "none":
        return _other_predictions(fingerprint, verdict)
    if verdict.pattern != ALL_FULL:
        return f"compare its start with: indexcache export {path}{_to(served)}"
    return _ignored(plan, path, served)


def _other_predictions(fingerprint: Fingerprint, verdict: Verdict) -> str:
    """What may have changed the predictions of a server that runs none of the known patterns."""
    if min(verdict.evidence.errors.values()) > _OTHER_MODEL:
        return "it is so far off that it serves another model, other weights or another tokenizer"
    if (near := _near(fingerprint, verdict)) is not None:
        return f"it predicts as the plan with {near}: compare the pattern that it was given, letter by letter"
    return (
        "look at what changes every prediction: chunked prefill, the indexer's rope layout "
        "(indexer_rope_interleave), quantised weights or cache, speculative decoding, another pattern"
    )


def _to(served: Served) -> str:
    return f" --to {served.engine}" if served.engine else " --to ENGINE"


def _ignored(plan: Plan, path: Path, served: Served) -> str:
    """Which keys the engine reads, and where."""
    shown = f"indexcache export {path}{_to(served)} prints the settings"
    if served.engine is None:
        return f"{shown}; --engine names the keys that the engine reads"
    title = ENGINES[served.engine].title
    try:
        try:
            exported = export(plan, served.engine, Serving(served.version))
        except IndexcacheError:  # the server's version may be none that the table can place
            exported = export(plan, served.engine)
    except IndexcacheError as error:
        return error.line()
    # Not what is pasted beside the pattern for want of a look at config.json.
    others = {need.name for support in ENGINES[served.engine].families.values() for need in support.needs}
    keys = " and ".join(path for path in _paths(exported.settings) if path.rpartition(".")[2] not in others)
    version = f" {served.version}" if served.version else ""
    return f"{title}{version} reads {keys}{_place(exported.paste)}; {shown}"


def _place(paste: str) -> str:
    """Where an engine is given its keys: the option before them in what is pasted, or config.json."""
    if option := re.search(r"(--[\w-]+) '\{", paste):
        return f" from {option[1]}"
    return " from config.json" if paste.startswith("{") else ""


def _paths(settings: Mapping[str, object], above: str = "") -> list[str]:
    """The names of keys, with the sections that they stand in: text_config.indexer_types."""
    return [
        name
        for key, value in settings.items()
        for name in (_paths(value, f"{above}{key}.") if isinstance(value, dict) else [f"{above}{key}"])
    ]
