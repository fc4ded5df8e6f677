"""What a fingerprint says: prefixes and what known patterns predict there; read and written through one check."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError, model_validator

from ...errors import PlanError
from ...system.documents import check_showable, first_fault, parse_json, read_bytes
from ...system.files import write_atomically
from ..plan.beside import Section, file_beside
from ..plan.schema import CHECKSUM, Count, Plan, Sha256, content_checksum

VERSION: Final = 1
FINGERPRINT_FILE = "fingerprint.json"
TOP: Final = 5
"""Log-probabilities to ask a server for: OpenAI's completions give no more, nor do those that follow them."""
_LARGEST_FILE = 64 << 20
_LONGEST_PREFIX = 1 << 20
# Nats; what a server gives for a token that cannot come is far above it.
LOWEST = -1e4

LogProbability = Annotated[float, Field(allow_inf_nan=False, ge=LOWEST, le=1e-3)]
Spread = Annotated[float, Field(allow_inf_nan=False, ge=0, le=1e3)]
Token = Annotated[int, Field(ge=0, lt=1 << 31)]


class KnownPattern(Section):
    """A pattern that a server may run: what it is called, and its letters, one for each decoder layer.

    ``near`` where it is one swap away from the plan: then it stands for many that are as near, and a server that
    runs it is said to run none of the known ones.
    """

    name: Annotated[str, Field(min_length=1, max_length=200)]
    layers: Annotated[str, Field(pattern=r"^[FS]{1,1000}$")]
    near: bool = False


class Candidate(Section):
    """A token that may come next: its id, its text alone ("" where that is none), how likely patterns find it.

    ``logprobs`` has one log-probability in nats for each of the fingerprint's patterns, in their order.
    """

    token: Token
    text: Annotated[str, Field(max_length=1000)]
    logprobs: tuple[LogProbability, ...]


class Prefix(Section):
    """The beginning of a held-out window, and what may come next.

    ``text`` gives exactly ``tokens`` where a server tokenises it; None where no text does. ``spread`` is how far
    a log-probability moves between dtypes and backends here: the root of the mean square, in nats.
    """

    tokens: Annotated[tuple[Token, ...], Field(min_length=1, max_length=_LONGEST_PREFIX)]
    text: str | None
    candidates: Annotated[tuple[Candidate, ...], Field(min_length=1, max_length=10_000)]
    spread: Spread


class FingerprintModel(Section):
    """Whose fingerprint it is: the checkpoint, its weights, the plan's pattern, and how wide a selection is."""

    id: str
    weights_sha256: Sha256
    plan_sha256: Sha256
    pattern: Annotated[str, Field(pattern=r"^[FS]{1,1000}$")]
    selection_width: Count


class FingerprintTokenizer(Section):
    """The tokenizer that the ids are of: its file's hash, None where it has no such file, and its size.

    ``opening`` are the ids that it puts before a text by itself, BOS mostly. All prefixes begin with them where
    ``opens``; a server that is sent a prefix's text adds them, one that is sent its ids does not.
    """

    sha256: Sha256 | None
    vocabulary: Annotated[int, Field(gt=0)]
    opening: tuple[Token, ...]
    opens: bool


class FingerprintRun(Section):
    """How the model ran, and which other ways of running it were ``compared`` to measure the spread."""

    dtype: str
    device: str
    versions: dict[str, str]
    compared: tuple[str, ...]


class Fingerprint(Section):
    """What tells which pattern a server runs.

    ``patterns`` begins with the plan. ``alike`` are known patterns that no prefix tells from the plan: what a
    server answers that runs one of them is as good as the plan's. ``top`` is how many log-probabilities are asked.
    """

    version: Literal[1] = VERSION
    model: FingerprintModel
    tokenizer: FingerprintTokenizer
    run: FingerprintRun
    top: Annotated[int, Field(ge=1, le=100)] = TOP
    patterns: Annotated[tuple[KnownPattern, ...], Field(min_length=2, max_length=1000)]
    alike: tuple[KnownPattern, ...] = ()
    prefixes: Annotated[tuple[Prefix, ...], Field(min_length=1, max_length=1000)]

    @model_validator(mode="after")
    def _agrees(self) -> Fingerprint:
        if self.patterns[0].layers != self.model.pattern:
            raise ValueError("patterns[0] is not the plan's pattern")
        for subject, values in (
            ("pattern", [pattern.layers for pattern in self.patterns]),
            ("pattern's name", [pattern.name for pattern in self.patterns]),
            ("prefix", [prefix.tokens for prefix in self.prefixes]),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"a {subject} stands there twice")
        if len({len(pattern.layers) for pattern in (*self.patterns, *self.alike)}) > 1:
            raise ValueError("patterns are of different length")
        for number, prefix in enumerate(self.prefixes):
            if any(len(candidate.logprobs) != len(self.patterns) for candidate in prefix.candidates):
                raise ValueError(f"prefix {number} has not one log-probability for each pattern")
            if len({candidate.token for candidate in prefix.candidates}) < len(prefix.candidates):
                raise ValueError(f"prefix {number} has a candidate twice")
        return self

    def hides(self, name: str) -> bool:
        """Whether no prefix tells the pattern of that name from the plan."""
        return any(pattern.name == name for pattern in self.alike)

    def as_json(self) -> str:
        """The file's text: a line for each prefix and pattern, and last a checksum over the rest."""
        content = self.model_dump(mode="json")
        content[CHECKSUM] = content_checksum(content)
        lines = []
        for name, value in content.items():
            if isinstance(value, list) and value:
                rows = ",\n    ".join(_compact(row) for row in value)
                lines.append(f"  {_compact(name)}: [\n    {rows}\n  ]")
            else:
                lines.append(f"  {_compact(name)}: {_compact(value)}")
        return "{\n" + ",\n".join(lines) + "\n}\n"


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(", ", ": "))


def fingerprint_file(plan: Path) -> Path:
    """Where the fingerprint of the plan in the file ``plan`` is: fingerprint.json for plan.json."""
    return file_beside(plan, FINGERPRINT_FILE)


def plan_sha256(plan: Plan) -> str:
    """The hash of what a fingerprint follows from: the checkpoint, the tokens and the pattern."""
    followed = [plan.model.model_dump(mode="json"), plan.tokens.sha256, plan.result.layer_pattern]
    return hashlib.sha256(json.dumps(followed, sort_keys=True).encode()).hexdigest()


def read_fingerprint(path: Path) -> Fingerprint:
    """Reads and checks a fingerprint.

    Raises:
        PlanError: missing, unreadable, changed or not what ``eval --fingerprint`` writes; names the field.
    """
    hint = "indexcache eval PLAN --fingerprint writes it anew"
    try:
        document = parse_json(read_bytes(path, PlanError, _LARGEST_FILE).decode())
        check_showable(_without_texts(document))
    except FileNotFoundError:
        raise PlanError(f"there is no fingerprint {str(path)!r}", hint=hint) from None
    except (ValueError, RecursionError) as error:  # not UTF-8 either
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise PlanError(f"{str(path)!r} is not a fingerprint that can be read: {reason}", hint=hint) from error
    if not isinstance(document, dict) or document.get("version") != VERSION:
        stated = document.get("version") if isinstance(document, dict) else None
        raise PlanError(
            f"{str(path)!r} has fingerprint version {stated!r}, this program reads {VERSION}", hint=hint
        )
    stated = document.pop(CHECKSUM, None)
    try:
        fingerprint = Fingerprint.model_validate_json(json.dumps(document))
    except ValidationError as error:
        field, fault = first_fault(error)
        raise PlanError(f"{str(path)!r} is no fingerprint: {field or 'it'}: {fault}", hint=hint) from None
    if stated != content_checksum(document):
        raise PlanError(
            f"{str(path)!r}, field {CHECKSUM}: not that of its content, which was changed or damaged", hint=hint
        )
    return fingerprint


def _without_texts(document: Any) -> Any:
    """``document`` less the prefixes, whose texts hold line ends: their tokens are what is shown."""
    return {**document, "prefixes": []} if isinstance(document, dict) else document


def write_fingerprint(path: Path, fingerprint: Fingerprint) -> None:
    """Writes ``fingerprint`` to ``path``, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    write_atomically(path, fingerprint.as_json())
