"""A running server of the OpenAI kind: what it serves, in which engine, and what it gives after a prefix."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from ..errors import ServerError
from ..search.fingerprint.document import Fingerprint, Prefix
from ..system.web.answer import Answer, shortened
from ..system.web.site import Site
from .check_answers import Reply, read_completion, read_generation

# Who owns a model by /models, and which engine that is; llama-cpp-python calls itself "me".
_OWNERS = {
    "vllm": "vllm",
    "sglang": "sglang",
    "tensorrt_llm": "tensorrt-llm",
    "atom": "atom",
    "xllm": "xllm",
    "lmdeploy": "lmdeploy",
    "llamacpp": "llama.cpp",
    "me": "llama.cpp",
}
_ABSENT = (404, 405, 501)
_NAMED_MODELS = 8
_TOO_LONG = re.compile(r"context|max_model_len|too long|exceed|max_seq_len|truncat", re.IGNORECASE)
_CHAT_ONLY = "it has chat completions only, whose template changes tokens: a server with /completions is needed"
_NO_LOGPROBS = {
    "llama.cpp": "llama-cpp-python gives them where it was started with --logits_all true",
    "mlx-vlm": "it gives them where it was started with --top-logprobs-k 5",
    "lmdeploy": "it gives them where it was started with --logprobs-mode raw_logprobs",
    "tensorrt-llm": "its PyTorch backend gives them",
}


@dataclass(frozen=True)
class Served:
    """What a server says of itself.

    Args:
        model: its name in requests.
        engine: as in the table of engines; None where nothing tells.
        version: of the engine; None where it does not say.
        context: tokens that a prompt and its answer may have; None where it does not say.
    """

    model: str
    engine: str | None
    version: str | None
    context: int | None


@dataclass(frozen=True)
class Manner:
    """How a server is asked.

    Args:
        by_ids: by token ids; else by text.
        generates: by the engine's own /generate, which SGLang and LMDeploy have.
        chat: by a chat's only message, where no template adds to it.
        extras: what not every server knows of.
        temperature: 0, or 1 where log-probabilities are of what was sampled.
    """

    by_ids: bool
    generates: bool = False
    chat: bool = False
    extras: bool = False
    temperature: float = 0.0


class _UnfitError(Exception):
    """The server does not take a request in this manner; ``left`` are those that are left, where few are."""

    def __init__(self, reason: str, left: Sequence[Manner] | None = None) -> None:
        super().__init__(reason)
        self.left = left


class Server:
    """A server that was found to have a completions endpoint.

    Args:
        site: its address with /v1.
        served: what it says of itself.
        top: how many log-probabilities to ask for.
        inside: whether to ask for those within the prompt too.
    """

    def __init__(self, site: Site, served: Served, top: int, inside: bool = False) -> None:
        self.site, self.served = site, served
        self._top, self._inside = top, inside
        self.manner: Manner | None = None

    def ask(self, prefix: Prefix) -> Reply:
        """What the server gives for the token after ``prefix``; the first time in the first manner that it takes.

        Raises:
            ServerError: it takes none, gives no log-probabilities, or counts other tokens than were sent.
        """
        reasons, manners = [], self._manners(prefix)
        while manners:
            manner = manners.pop(0)
            try:
                if self.manner is not None:
                    return self._asked(prefix, manner)
                reply, self.manner = self._tried(prefix, manner)
                return reply
            except _UnfitError as unfit:
                reasons.append(str(unfit))
                manners = manners if unfit.left is None else [*unfit.left]
        said = reasons[-1] if reasons else "it takes text only, and no text gives these tokens"
        raise ServerError(f"{self.site.url}: {said}", hint=self._hint(said, prefix))

    def _tried(self, prefix: Prefix, manner: Manner) -> tuple[Reply, Manner]:
        """The first answer in a manner, and the temperature at which it is the model's own.

        Some servers give log-probabilities of the choice that was made: at temperature 0 one token has it all.
        """
        reply = self._asked(prefix, manner)
        if reply.is_sampled:
            manner = replace(manner, temperature=1.0)
            reply = self._asked(prefix, manner)
        if reply.is_sampled:
            raise _UnfitError("its log-probabilities are of the token that it chose, not the model's")
        return reply, manner

    def _hint(self, said: str, prefix: Prefix) -> str | None:
        if _TOO_LONG.search(said):
            return f"it must take prompts of {len(prefix.tokens) + 1} tokens: start it with a longer context"
        return None

    def _manners(self, prefix: Prefix) -> list[Manner]:
        if self.manner is not None:
            return [self.manner]
        generating = Manner(by_ids=True, generates=True)
        if self.served.engine == "lmdeploy":
            # Its completions give no log-probabilities, and would take ids for so many prompts.
            return [generating]
        manners = [Manner(by_ids=True, extras=True), Manner(by_ids=True)]
        if self.served.engine == "sglang":
            manners.insert(0, generating)
        return manners + ([Manner(by_ids=False)] if prefix.text is not None else [])

    def _asked(self, prefix: Prefix, manner: Manner) -> Reply:
        if manner.generates:
            answer = self.site.post("//generate", self._generation(prefix, manner))
        elif manner.chat:
            answer = self.site.post("chat/completions", self._message(prefix, manner))
        else:
            answer = self.site.post("completions", self._completion(prefix, manner))
        if answer.status != 200:
            if answer.status in _ABSENT and not manner.generates:
                self._leave_completions(answer, prefix)
            raise _UnfitError(answer.reason())
        read = read_generation if manner.generates else read_completion
        reply = read(answer.document(), prefix)
        if reply is None and self.manner is not None:
            return Reply({}, False, None, {})  # mlx-vlm, where the token ends the text: it says nothing
        if reply is None:
            hint = _NO_LOGPROBS.get(self.served.engine or "")
            raise _UnfitError("the server gives no log-probabilities" + (f": {hint}" if hint else ""))
        self._check_count(reply, prefix, manner)
        return reply

    def _completion(self, prefix: Prefix, manner: Manner) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.served.model,
            "prompt": list(prefix.tokens) if manner.by_ids else prefix.text,
            "max_tokens": 1,
            "temperature": manner.temperature,
            "logprobs": self._top,
        }
        if manner.extras:
            request["return_tokens_as_token_ids"] = True  # vLLM's
        if self._inside:
            request["prompt_logprobs"] = self._top  # vLLM's too
        return request

    def _message(self, prefix: Prefix, manner: Manner) -> dict[str, Any]:
        return {
            "model": self.served.model,
            "messages": [{"role": "user", "content": prefix.text}],
            "max_tokens": 1,
            "temperature": manner.temperature,
            "logprobs": True,
            "top_logprobs": self._top,
        }

    def _generation(self, prefix: Prefix, manner: Manner) -> dict[str, Any]:
        if self.served.engine == "lmdeploy":
            sampling = {"max_tokens": 1, "temperature": manner.temperature}
            return {"input_ids": list(prefix.tokens), "return_logprob": True, **sampling}
        return {
            "input_ids": list(prefix.tokens),
            "sampling_params": {"max_new_tokens": 1, "temperature": manner.temperature},
            "return_logprob": True,
            "top_logprobs_num": self._top,
            "token_ids_logprob": [candidate.token for candidate in prefix.candidates],
        }

    def _check_count(self, reply: Reply, prefix: Prefix, manner: Manner) -> None:
        """Refuses answers to another prompt than was sent."""
        sent = len(prefix.tokens)
        if manner.chat and reply.counted != sent and self.manner is None:
            raise _UnfitError(_CHAT_ONLY)
        if reply.counted is None or reply.counted == sent:
            return
        said = f"it counts {reply.counted} tokens in a prompt of {sent}"
        if manner.by_ids and self.manner is None:
            raise _UnfitError(said)  # a server that takes ids for something else may take text
        cause = (
            "it cuts prompts off"
            if reply.counted < sent
            else "it puts tokens before a text, or splits it otherwise"
        )
        raise ServerError(
            f"{self.site.url}: {said}: it has another tokenizer, or {cause}",
            hint="the fingerprint is of the checkpoint's own tokenizer, and asks for whole prompts",
        )

    def _leave_completions(self, answer: Answer, prefix: Prefix) -> NoReturn:
        """Leaves a server without completions its chats.

        Raises:
            ServerError: it has neither, or does not know the model.
        """
        reason = answer.reason()
        if "model" in reason.lower():
            raise ServerError(
                f"{answer.url}: model {shortened(self.served.model)!r}: {reason}", hint="name it with --model"
            )
        chat = self.site.post("chat/completions", {})
        if chat.status not in _ABSENT:
            raise _UnfitError(_CHAT_ONLY, [Manner(by_ids=False, chat=True)] if prefix.text is not None else [])
        raise ServerError(
            f"{answer.url}: {reason}", hint="give the address with /v1 of a server with /completions"
        )


def open_server(site: Site, model: str | None, engine: str | None, top: int, inside: bool) -> Server:
    """The server behind ``site``, with the model that it serves.

    Args:
        site: its address with /v1.
        model: its name in requests; where None, the only one that the server has.
        engine: what it runs in, where that is known better than by asking.
        top: how many log-probabilities to ask for.
        inside: whether to ask for those within the prompt too.

    Raises:
        ServerError: it cannot be asked, is no such server, or serves another model or several.
    """
    answer = site.get("models")
    if answer.status in _ABSENT and model is not None:
        return Server(site, Served(model, engine, None, None), top, inside)
    if answer.status != 200:
        raise _no_models(site, answer)
    if answer.is_page and (better := _better_address(site)):
        raise better
    entry, cards = _entry(site, answer.document(), model), answer.headers
    owner = str(entry.get("owned_by", "")).lower()
    guess = _OWNERS.get(owner) or ("llama.cpp" if "llama" in cards.get("server", "").lower() else None)
    guess = guess or ("mlx-vlm" if "loaded" in entry else None)
    context = next(
        (entry[name] for name in ("max_model_len", "context_length") if _is_count(entry.get(name))), None
    )
    served = Served(str(entry["id"]), engine or guess, None, context)
    return Server(site, replace(served, version=_version(site, served.engine)), top, inside)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 31


def _no_models(site: Site, answer: Answer) -> ServerError:
    if answer.status in _ABSENT and (better := _better_address(site)):
        return better
    return ServerError(
        f"{answer.url}: {answer.reason()}",
        hint="see that --url leads to its /v1; where a server has no /models, name the model with --model",
    )


def _better_address(site: Site) -> ServerError | None:
    """That the server is found at its root with /v1, if it is, and was not asked for there."""
    if str(site.url).rstrip("/") == f"{site.root}/v1":
        return None
    answer = site.get("//v1/models")
    if answer.status != 200 or answer.is_page:
        return None
    return ServerError(f"there is no server at {site.url}, but one at {site.root}/v1", hint="give that address")


def _entry(site: Site, document: dict[str, Any], model: str | None) -> dict[str, Any]:
    """What /models says of the model that is asked for."""
    cards = document.get("data")
    entries = [
        card for card in (cards if isinstance(cards, list) else []) if isinstance(card, dict) and card.get("id")
    ]
    names = [str(entry["id"]) for entry in entries]
    if not entries:
        raise ServerError(f"{site.url} names no model that it serves", hint="see that its model is loaded")
    if model is None and len(set(names)) == 1:
        return entries[0]
    loaded = [entry for entry in entries if entry.get("loaded") is True]  # mlx-vlm names all that it could load
    if model is None and len(loaded) == 1:
        return loaded[0]
    listed = ", ".join(shortened(name) for name in names[:_NAMED_MODELS])
    listed += f" and {len(names) - _NAMED_MODELS} more" if len(names) > _NAMED_MODELS else ""
    if model is None:
        raise ServerError(f"{site.url} serves several models: {listed}", hint="name one with --model")
    if model not in names:
        raise ServerError(
            f"{site.url} does not serve {model!r}, but {listed}", hint="name one of these with --model"
        )
    return entries[names.index(model)]


def _version(site: Site, engine: str | None) -> str | None:
    """The version of vLLM, which says it."""
    if engine not in ("vllm", "vllm-ascend"):
        return None
    try:
        answer = site.get("//version")
        version = answer.document().get("version") if answer.status == 200 else None
    except ServerError:
        return None
    return version if isinstance(version, str) and re.fullmatch(r"[\w.+-]{1,60}", version) else None


def check_tokenizer(server: Server, fingerprint: Fingerprint) -> None:
    """Refuses a server whose tokenizer makes other ids of a prefix's text, where it has a way to ask.

    Ids that are sent say nothing of that: any model takes them.

    Raises:
        ServerError: it has another tokenizer.
    """
    prefix = min(
        (prefix for prefix in fingerprint.prefixes if prefix.text is not None),
        key=lambda prefix: len(prefix.tokens),
        default=None,
    )
    if prefix is None:
        return
    request = {"model": server.served.model, "prompt": prefix.text, "content": prefix.text, "add_special": True}
    answer = server.site.post("//tokenize", request)
    if answer.status != 200 or answer.is_page:
        return
    tokens = answer.document().get("tokens")
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        return
    opening = len(fingerprint.tokenizer.opening)
    expected = list(prefix.tokens)
    # What is put before a text is no matter here: it is not put before ids.
    if not any(
        ours == theirs
        for ours in (expected, expected[opening:])
        for theirs in (tokens, tokens[opening:], tokens[1:])
    ):
        raise ServerError(
            f"{server.site.url} has another tokenizer: it makes {len(tokens)} tokens of a text of {len(expected)}",
            hint="it serves another model, or the checkpoint with other files",
        )
