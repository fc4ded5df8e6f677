"""Servers on this machine that answer as engines do, by what patterns predict; a fingerprint of made-up ones."""

import hashlib
import json
import ssl
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from indexcache.search.fingerprint.document import (
    Candidate,
    Fingerprint,
    FingerprintModel,
    FingerprintRun,
    FingerprintTokenizer,
    KnownPattern,
    Prefix,
    plan_sha256,
)

WORDS = 40
# Of made-up tokens two have the same text, and one has none: bytes of a longer character.
SAME, BYTES = (3, 4), 5


def text_of(token):
    return "\ufffd" if token == BYTES else " w3" if token in SAME else f" w{token}"


def tokenized(text):
    return [int(word[1:]) for word in text.split()]


def made_up(layers, noise=0.0, interleaved=True):
    """Log-probabilities of next tokens by their ids, as of a pattern whose letters all move them."""

    def predict(tokens):
        logits = _normal(tokens) * 2
        for layer, letter in enumerate(layers):
            if letter == "S":
                logits = logits + 0.2 * _normal([*tokens, 1000 + layer])
        if not interleaved:
            logits = logits + 0.7 * _normal([*tokens, 2000])
        logits = logits + noise * _normal([*tokens, 3000])
        return logits - np.log(np.exp(logits).sum())

    return predict


def _normal(seed):
    digest = hashlib.sha256(repr(tuple(seed)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big")).standard_normal(WORDS)


def made_up_fingerprint(plan, prefixes=40, spread=0.01):
    """A fingerprint of ``plan``, as if the model predicted what ``made_up`` does."""
    letters = plan.result.layer_pattern
    count = len(letters)
    named = {"plan": letters, "all full": "F" * count, "uniform": ("FS" * count)[:count]}
    named["shifted by one layer"] = "F" + letters[:-1]
    known = {layers: name for name, layers in reversed(named.items())}
    patterns = [KnownPattern(name=name, layers=layers) for layers, name in reversed(known.items())]
    rows = []
    for number in range(prefixes):
        tokens = [number + 6 if number < WORDS - 6 else 7, *(6 + (number * step) % 30 for step in range(2, 12))]
        predictions = [made_up(pattern.layers)(tokens) for pattern in patterns]
        likely = sorted({int(token) for row in predictions for token in np.argsort(-row)[:7]})
        candidates = tuple(
            Candidate(
                token=token,
                text="" if token == BYTES else text_of(token),
                logprobs=tuple(float(row[token]) for row in predictions),
            )
            for token in likely
        )
        text = None if number % 5 == 4 else "".join(map(text_of, tokens))
        rows.append(Prefix(tokens=tuple(tokens), text=text, candidates=candidates, spread=spread))
    sha = "0" * 64
    return Fingerprint(
        model=FingerprintModel(
            id="made-up", weights_sha256=sha, plan_sha256=plan_sha256(plan), pattern=letters, selection_width=4
        ),
        tokenizer=FingerprintTokenizer(sha256=sha, vocabulary=WORDS, opening=(), opens=False),
        run=FingerprintRun(dtype="float32", device="cpu", versions={}, compared=("float32", "bfloat16")),
        patterns=tuple(patterns),
        prefixes=tuple(rows),
    )


class Dialect:
    """How an engine answers; a base with vLLM's manners.

    Args:
        predict: log-probabilities of all next tokens, from ids.
    """

    owner, name, takes_ids, context = "vllm", "acme/model", True, None

    def __init__(self, predict, text_of=text_of, tokenized=tokenized):
        self.predict, self.text_of, self.tokenized = predict, text_of, tokenized
        self.asked = []  # paths, with what was sent and the headers

    def models(self):
        card = {"id": self.name, "object": "model", "owned_by": self.owner}
        return 200, {"object": "list", "data": [card | ({"max_model_len": self.context} if self.context else {})]}

    def get(self, path):
        if path == "/v1/models":
            return self.models()
        return (200, {"version": "0.33.0"}) if path == "/version" else (404, {"detail": "Not Found"})

    def post(self, path, sent):
        if path == "/v1/completions":
            return self.complete(sent)
        if path == "/tokenize":
            return 200, {"tokens": self.tokenized(sent["prompt"])}
        return 404, {"detail": "Not Found"}

    def complete(self, sent):
        prompt = sent["prompt"]
        if isinstance(prompt, list) and not self.takes_ids:
            return 422, {"detail": [{"msg": "Input should be a valid string", "loc": ["body", "prompt"]}]}
        tokens = prompt if isinstance(prompt, list) else self.tokenized(prompt)
        logprobs = self.predict(tokens)
        top = [int(token) for token in np.argsort(-logprobs)[: sent["logprobs"]]]
        choice = {"index": 0, "text": self.text_of(top[0]), "logprobs": self.listed(top, logprobs, sent)}
        if sent.get("prompt_logprobs"):
            choice["prompt_logprobs"] = self.inside(tokens, sent["prompt_logprobs"])
        return 200, {"choices": [choice], "usage": {"prompt_tokens": len(tokens), "completion_tokens": 1}}

    def listed(self, top, logprobs, sent):
        ids = sent.get("return_tokens_as_token_ids")
        named = {f"token_id:{token}" if ids else self.text_of(token): float(logprobs[token]) for token in top}
        name = next(iter(named))
        return {"tokens": [name], "token_logprobs": [named[name]], "top_logprobs": [named]}

    def inside(self, tokens, count):
        rows = [None]
        for length in range(1, len(tokens)):
            row = self.predict(tokens[:length])
            top = {*map(int, np.argsort(-row)[:count]), tokens[length]}
            rows.append({str(token): {"logprob": float(row[token]), "rank": 1} for token in top})
        return rows


class LlamaCppPython(Dialect):
    """Texts only, and tokens named by their texts."""

    owner, takes_ids = "me", False

    def post(self, path, sent):
        return (404, {"detail": "Not Found"}) if path == "/tokenize" else super().post(path, sent)


class LlamaServer(Dialect):
    """llama.cpp's own: as in chats, with ids."""

    owner = "llamacpp"

    def listed(self, top, logprobs, sent):
        rows = [{"id": t, "token": self.text_of(t), "bytes": [], "logprob": float(logprobs[t])} for t in top]
        return {"content": [rows[0] | {"top_logprobs": rows}]}


class Strict(Dialect):
    """TensorRT-LLM: no field that it does not know."""

    owner = "tensorrt_llm"

    def complete(self, sent):
        if "return_tokens_as_token_ids" in sent:
            return 400, {"message": "Extra inputs are not permitted", "code": 400}
        return super().complete(sent)


class SGLang(Dialect):
    """Its own way to generate, and tokens named by their texts in the other."""

    owner = "sglang"

    def post(self, path, sent):
        if path != "/generate":
            return super().post(path, sent)
        logprobs = self.predict(sent["input_ids"])
        top = [int(token) for token in np.argsort(-logprobs)[: sent["top_logprobs_num"]]]
        rows = {
            name: [[[float(logprobs[token]), token, None] for token in tokens]]
            for name, tokens in (
                ("output_top_logprobs", top),
                ("output_token_ids_logprobs", sent["token_ids_logprob"]),
            )
        }
        return 200, {"text": "", "meta_info": {"prompt_tokens": len(sent["input_ids"]), **rows}}


class LMDeploy(Dialect):
    """Log-probabilities of the chosen token alone, by its own way to generate."""

    owner = "lmdeploy"

    def complete(self, sent):
        raise AssertionError("it would take ids for so many prompts")

    def post(self, path, sent):
        if path != "/generate":
            return super().post(path, sent)
        logprobs = self.predict(sent["input_ids"])
        token = int(np.argmax(logprobs))
        about = {
            "prompt_tokens": len(sent["input_ids"]),
            "output_token_logprobs": [[float(logprobs[token]), token]],
        }
        return 200, {"text": "", "output_ids": [token], "meta_info": about}


class MlxVlm(Dialect):
    """Chats only: a message is the prompt where the checkpoint has no template, and else a template adds to it."""

    adds = 0

    def models(self):
        names = {"acme/cached": False, self.name: True}
        return 200, {"data": [{"id": name, "object": "model", "loaded": loaded} for name, loaded in names.items()]}

    def post(self, path, sent):
        if path != "/v1/chat/completions":
            return 404, {"detail": "Not Found"}
        if "messages" not in sent:
            return 422, {"detail": [{"msg": "Field required"}]}
        tokens = self.tokenized(sent["messages"][0]["content"])
        logprobs = self.predict(tokens)
        top = [int(token) for token in np.argsort(-logprobs)[: sent["top_logprobs"]]]
        rows = [{"token": self.text_of(token), "logprob": float(logprobs[token]), "bytes": []} for token in top]
        choice = {"message": {"content": ""}, "logprobs": {"content": [rows[0] | {"top_logprobs": rows}]}}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": len(tokens) + self.adds}}


class Sampled(Dialect):
    """At temperature 0 its log-probabilities are of the choice."""

    def complete(self, sent):
        predict = self.predict
        if sent["temperature"] == 0:
            chosen = int(np.argmax(predict(sent["prompt"])))
            self.predict = lambda tokens: np.where(np.arange(WORDS) == chosen, 0.0, -9999.0)
        answer = super().complete(sent)
        self.predict = predict
        return answer


class Raw:
    """Answers that are given byte by byte: a status, headers and a body, by path; or what ``respond`` makes.

    Args:
        respond: from a method, a path and what was sent, a status, headers and a body.
    """

    def __init__(self, respond):
        self.respond, self.asked = respond, []


@contextmanager
def serving(dialect, certificate=None):
    """A server on a port of its own; gives its address with /v1.

    Args:
        dialect: how it answers; ``Raw`` may give an iterator of bytes as a body, sent one by one.
        certificate: a file with its certificate and key, for https.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or each answer waits 40 ms for an acknowledgement

        def log_message(self, *_):
            pass

        def do_GET(self):
            self.reply(None)

        def do_POST(self):
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, sent):
            fields = {name.lower(): value for name, value in self.headers.items()}
            dialect.asked.append((self.path, sent, fields))
            if isinstance(dialect, Raw):
                status, headers, body = dialect.respond(self.command, self.path, sent)
            else:
                status, document = dialect.get(self.path) if sent is None else dialect.post(self.path, sent)
                headers, body = {"Content-Type": "application/json"}, json.dumps(document).encode()
            self.send_response(status)
            length = {"Content-Length": len(body)} if isinstance(body, bytes) else {}
            for name, value in {**length, **headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            for piece in [body] if isinstance(body, bytes) else body:
                self.wfile.write(piece)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    scheme = "http"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket, scheme = context.wrap_socket(server.socket, server_side=True), "https"
    server.handle_error = lambda *_: None  # a client that left
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"{scheme}://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
