"""The apply command, and load and apply in Python: transformers models that run under a plan."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..dsa.checkpoint.config import Trust, load_tokenizer
from ..dsa.checkpoint.dtypes import dtype_name
from ..dsa.checkpoint.load import Placement
from ..dsa.model.applied import AppliedPattern
from ..dsa.model.losses import input_device
from ..dsa.stream.load import load_whole
from ..errors import CacheError, ModelError, SettingError
from ..evaluate import CALIBRATION, HELD_OUT
from ..pattern import Pattern
from ..search.plan.file import check_indexers, read_plan
from ..search.plan.schema import Plan
from ..system.console import Reporter, new_console, print_line
from ..system.exits import print_result
from .job.measure import check_positions
from .job.planned import PlannedModel, open_planned


def load(
    model: str | Path,
    plan: str | Path | Plan,
    *,
    dtype: Any = None,
    device_map: Any = None,
    offload_folder: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    verify: bool = True,
) -> Any:
    """A transformers model that runs under a plan, for ``generate``, one's own forwards or lm-eval's ``HFLM``.

    ``model.indexcache`` is its ``AppliedPattern``: ``use`` changes the pattern, ``remove`` undoes it all.

    Args:
        model: a local folder or a hub id: the plan's checkpoint.
        plan: a plan.json, the folder of a run, or a plan that was read.
        dtype: "auto", "float32", "bfloat16" or "float16", or torch's; that of the plan if not given.
        device_map: transformers' placement; without one the model goes to the first accelerator.
        offload_folder: where transformers puts weights that fit into no memory.
        revision: branch, tag or commit of a hub model; that of the plan if the model has its name.
        trust_remote_code: run code that the checkpoint brings.
        allow_pickle: load pickled weights, where there are no others.
        verify: hash the weights and compare them with the plan's.

    Raises:
        PlanError: the plan cannot be read, or needs distilled indexers that its checkpoint does not have.
        IdentityError: it was made for another checkpoint; names what differs.
        ModelError: the checkpoint cannot be found or loaded.
    """
    plan = plan if isinstance(plan, Plan) else read_plan(Path(plan))
    check_indexers(plan)
    planned = open_planned(plan, str(model), Trust(trust_remote_code, allow_pickle), revision)
    if verify:
        planned.check_weights()
    placement = Placement(device_map, offload_folder)
    loaded = load_whole(planned.checkpoint, planned.weights, dtype_name(dtype or plan.run.dtype), placement)
    apply(loaded, plan)
    return loaded


def apply(model: Any, plan: str | Path | Plan) -> AppliedPattern:
    """Puts a loaded transformers model under a plan, as ``load`` does; returns ``model.indexcache``.

    Only the places of the model's indexers are compared with the plan's: which weights it has is the
    caller's to know. A pattern that is in force already is replaced.

    Raises:
        PlanError: the plan cannot be read, or needs distilled indexers.
        ModelError: the model has its indexers elsewhere, or is none.
    """
    plan = plan if isinstance(plan, Plan) else read_plan(Path(plan))
    check_indexers(plan)
    if not hasattr(model, "named_modules"):
        raise ModelError(f"{model!r} is no loaded model", hint="indexcache.load takes a folder or a hub id")
    return AppliedPattern(model, plan.model.site_layers, plan.pattern)


@dataclass(frozen=True)
class Continuation:
    """How a prompt goes on, greedily decoded with a cache, all full and under a plan.

    Args:
        prompt_tokens: length of the prompt.
        choosing: how many of all positions see more keys than indexers select; at the others nothing differs.
        full: the new tokens, all full.
        plan: the new tokens under the plan.
        full_text: those as text.
        plan_text: likewise.
    """

    prompt_tokens: int
    choosing: int
    full: tuple[int, ...]
    plan: tuple[int, ...]
    full_text: str
    plan_text: str

    @property
    def agreed(self) -> int:
        """How many tokens both begin with."""
        pairs = zip(self.full, self.plan, strict=False)
        return next(
            (number for number, (full, planned) in enumerate(pairs) if full != planned),
            min(len(self.full), len(self.plan)),
        )


@dataclass(frozen=True)
class PromptRequest:
    """What to continue and by how much; without a ``text``, one of the plan's own windows is."""

    text: str | None
    new_tokens: int


def continue_prompt(
    planned: PlannedModel, path: Path, request: PromptRequest, placement: Placement, reporter: Reporter
) -> Continuation:
    """Loads the checkpoint of the plan in the file ``path`` and continues a prompt, under the plan and all full.

    Raises:
        SettingError: an empty prompt.
        WindowError: prompt and continuation are longer than the model's positions.
        IdentityError: the checkpoint or the tokens are not the plan's; names what differs.
        IndexcacheError: one of its other kinds.
    """
    plan, checkpoint = planned.plan, planned.checkpoint
    check_indexers(plan)
    tokenizer = load_tokenizer(checkpoint)
    prompt = _prompt(planned, path.parent, request, tokenizer)
    planned.check_weights(reporter)
    reporter.doing(f"loading {checkpoint.model_id}")
    model = load_whole(checkpoint, planned.weights, plan.run.dtype, placement)
    applied = apply(model, plan)
    reporter.doing(f"continuing {len(prompt)} tokens by {request.new_tokens}, under the plan and all full")
    under_plan = _generate(model, prompt, request.new_tokens, reporter.say)
    applied.use(Pattern.all_full(len(plan.pattern)))
    full = _generate(model, prompt, request.new_tokens)
    return Continuation(
        prompt_tokens=len(prompt),
        choosing=max(0, len(prompt) + request.new_tokens - checkpoint.selection_width),
        full=full,
        plan=under_plan,
        full_text=tokenizer.decode(full),
        plan_text=tokenizer.decode(under_plan),
    )


def _prompt(planned: PlannedModel, folder: Path, request: PromptRequest, tokenizer: Any) -> Sequence[int]:
    if request.text is not None:
        prompt = [int(token) for token in tokenizer(request.text)["input_ids"]]
    else:
        windows = planned.windows(folder)
        group = HELD_OUT if len(windows.heldout) else CALIBRATION
        window = windows.group(group)[0].tolist()
        prompt = window[: max(len(window) - request.new_tokens, len(window) // 2)]
    if not prompt:
        raise SettingError("the prompt holds no tokens", hint="give one with --prompt")
    subject = f"a prompt of {len(prompt)} tokens and {request.new_tokens} more are"
    length = len(prompt) + request.new_tokens
    check_positions(planned.checkpoint, length, subject, "shorten --prompt, or lower --new-tokens")
    return prompt


def _generate(
    model: Any, prompt: Sequence[int], new_tokens: int, report: Callable[[str], None] = lambda line: None
) -> tuple[int, ...]:
    """Up to ``new_tokens`` more, greedily decoded; without a cache where the model keeps none that can be used."""
    import torch

    ids = torch.tensor([list(prompt)], device=input_device(model))
    with torch.inference_mode():
        if _keeps_cache(model):
            try:
                mask = torch.ones_like(ids)
                out = model.generate(
                    ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, use_cache=True
                )
                return tuple(out[0, len(prompt) :].tolist())
            except Exception as error:
                if not _is_of_uncounted_cache(error):
                    raise
        report("the model keeps no key-value cache that can be used: every token runs the whole text again")
        return _generate_without_cache(model, ids, new_tokens)


def _is_of_uncounted_cache(error: Exception) -> bool:
    """Whether a cache that cannot say how much it holds raised ``error``, to the pattern or to transformers."""
    # Both ask a cache for its length by this name; one that counts nothing raises from within it.
    is_of_cache = any(frame.name == "get_seq_length" for frame in traceback.extract_tb(error.__traceback__))
    return is_of_cache or isinstance(error, CacheError)


def _keeps_cache(model: Any) -> bool:
    """Whether the model says that it decodes with a cache: in its config, and by taking one."""
    if not (getattr(model, "generate", None) and model.can_generate()):
        return False
    caches = inspect.signature(model.forward).parameters.keys() & {"past_key_values", "cache", "cache_params"}
    return bool(caches) and getattr(model.config.get_text_config(), "use_cache", True) is not False


def _generate_without_cache(model: Any, ids: Any, new_tokens: int) -> tuple[int, ...]:
    """As ``generate``, the whole text run again for each token; ``ids`` is ``[1, length]``."""
    import torch

    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    settings = getattr(model, "generation_config", None) or model.config.get_text_config()
    end = getattr(settings, "eos_token_id", None)
    ends = set(end) if isinstance(end, list) else {end}
    new: list[int] = []
    while len(new) < new_tokens and not (new and new[-1] in ends):
        new.append(int(model(input_ids=ids, **options).logits[0, -1].argmax()))
        ids = torch.cat([ids, ids.new_tensor([new[-1:]])], dim=1)
    return tuple(new)


def show(continuation: Continuation, as_json: bool) -> None:
    """Prints how a prompt goes on, on stdout."""
    if as_json:
        print_result(continuation_document(continuation))
    else:
        continuation_table(continuation)


def continuation_table(continuation: Continuation) -> None:
    """Prints how a prompt goes on, on stdout."""
    console = new_console()
    print_line(console, f"{continuation.prompt_tokens} tokens, continued greedily")
    for name, ids, text in (
        ("this plan", continuation.plan, continuation.plan_text),
        ("all full", continuation.full, continuation.full_text),
    ):
        console.print(f"\n{name}, {len(ids)} tokens:")
        console.print(text, markup=False, soft_wrap=True)
    console.print()
    longer = max(len(continuation.full), len(continuation.plan))
    print_line(console, f"alike in the first {continuation.agreed} of {longer} tokens")
    if not continuation.choosing:
        print_line(console, "no position sees more keys than indexers select, so that nothing could differ")


def continuation_document(continuation: Continuation) -> dict[str, Any]:
    """A continuation as JSON."""
    return {
        "prompt_tokens": continuation.prompt_tokens,
        "positions_that_choose": continuation.choosing,
        "agreed_tokens": continuation.agreed,
        "plan": {"tokens": list(continuation.plan), "text": continuation.plan_text},
        "all_full": {"tokens": list(continuation.full), "text": continuation.full_text},
    }
