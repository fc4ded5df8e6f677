"""Writes a distilled checkpoint: its weights, its plan, its tokens and its report, all at once."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from ..calibrate.frozen import frozen_bytes
from ..calibrate.windows import Windows
from ..dsa.checkpoint.config import open_checkpoint
from ..dsa.checkpoint.stored.rewrite import rewrite
from ..dsa.checkpoint.stored.weights import find_weights
from ..search.distil.findings import DistilledFindings
from ..search.distil.record import Training, distilled_plan
from ..search.plan.file import write_plan
from ..search.plan.schema import ModelIdentity, Plan
from ..search.run.folder import CHECKPOINT_TOKENS_FILE, PLAN_FILE, PLAN_FILES, write_report
from ..system.console import Reporter
from ..system.files import cannot_write, is_there, sync_folder, write_atomically
from ..system.signals import stops_held
from .distil_settings import DistilSettings
from .job.identity import model_identity
from .job.measure import Loaded, run_identity
from .job.planned import PlannedModel


def write(
    planned: PlannedModel,
    loaded: Loaded,
    windows: Windows,
    settings: DistilSettings,
    training: Training,
    findings: DistilledFindings,
    contents: Mapping[str, bytes],
    work: Path,
    reporter: Reporter,
) -> Plan:
    """Writes the checkpoint with ``contents`` in the place of some tensors, and its plan; the plan.

    It is made in ``work`` and gets its name at the end: whoever finds it finds all of it.

    Raises:
        OutputError: it cannot be written.
        PlanError: the plan contradicts itself.
    """
    folder, source = work / "checkpoint", planned.weights
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in sorted(PLAN_FILES):
            if is_there(source.folder / name):
                reporter.warn(f"the checkpoint's own {name} is not copied: the new plan's has its name")
        rewrite(
            source.folder,
            source.shards,
            contents,
            folder,
            lambda name: reporter.doing(f"writing {name}"),
            PLAN_FILES,
        )
        reporter.doing("hashing the new weights")
        model = _model(planned, folder, settings.out)
        plan = distilled_plan(
            planned.plan,
            model,
            run_identity(loaded),
            settings.pattern,
            training,
            findings,
            settings.gate.confidence,
            CHECKPOINT_TOKENS_FILE,
        )
        write_atomically(folder / CHECKPOINT_TOKENS_FILE, frozen_bytes(windows))
        write_report(folder, plan)
        write_plan(folder / PLAN_FILE, plan)
        with stops_held():
            folder.replace(settings.out)
            sync_folder(settings.out.absolute().parent)
    except OSError as error:
        raise cannot_write(settings.out, error) from error
    return plan


def _model(planned: PlannedModel, folder: Path, out: Path) -> ModelIdentity:
    """What the plan says of the checkpoint in ``folder``, which will be ``out``."""
    checkpoint = open_checkpoint(str(folder), None, planned.checkpoint.trust)
    kind = planned.plan.model.weights_hash
    identity = model_identity(checkpoint, find_weights(checkpoint), "auto" if kind == "files" else kind)
    return identity.model_copy(update={"id": str(out)})
