"""A plan and its model: the plan's checkpoint found, compared with it, and its tokens read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...calibrate.frozen import thaw
from ...calibrate.windows import Windows
from ...dsa.checkpoint.config import Checkpoint, Trust, open_checkpoint
from ...dsa.checkpoint.stored.weights import StoredWeights, find_weights
from ...errors import DatasetError, IdentityError, ModelError
from ...search.plan.schema import Plan
from ...system import processes
from ...system.console import Reporter
from .identity import check_same_model, model_identity


@dataclass(frozen=True)
class PlannedModel:
    """A plan and the checkpoint that it is for, or the one that is said to have its place.

    Args:
        plan: as read.
        checkpoint: found, its config read; whether its weights are the plan's is asked by ``check_weights``.
    """

    plan: Plan
    checkpoint: Checkpoint

    @cached_property
    def weights(self) -> StoredWeights:
        """The checkpoint's weights as they lie on disk, looked for once.

        Raises:
            ModelError: there are none, or a file is damaged.
        """
        return processes.run_on_main(lambda: find_weights(self.checkpoint))

    def check_weights(self, reporter: Reporter | None = None) -> None:
        """Compares config, weights and brought code with the plan's; ``reporter`` is told of it.

        Raises:
            IdentityError: names the first field that differs, and both values.
        """
        if reporter is not None:
            reporter.doing(f"hashing the weights of {self.checkpoint.model_id}")
        weights, hash_kind = self.weights, self.plan.model.weights_hash
        present = processes.run_on_main(lambda: model_identity(self.checkpoint, weights, hash_kind))
        check_same_model(self.plan.model, present)

    def check_layout(self) -> None:
        """Compares the places of layers and sites with the plan's, for which any weights do.

        Raises:
            IdentityError: says how many there are of each.
        """
        model, checkpoint = self.plan.model, self.checkpoint
        layout = (checkpoint.layers, list(checkpoint.site_layers), list(checkpoint.shared_layers))
        if layout != (model.layers, model.site_layers, model.shared_layers):
            raise IdentityError(
                f"{checkpoint.model_id!r} has {checkpoint.layers} layers and {len(checkpoint.site_layers)} sites, "
                f"not the plan's {model.layers} and {len(model.site_layers)} in the same places",
                hint="give the plan's model, or one of the same layout, with --model",
            )

    def windows(self, folder: Path) -> Windows:
        """The plan's frozen tokens, which stand in ``folder`` beside its file.

        Raises:
            IdentityError: they are others than the plan's; names what differs.
            DatasetError: they cannot be read, or hold ids that the model does not know.
        """
        planned = self.plan.tokens
        windows = thaw(folder / planned.file, planned.sha256)
        sizes = (windows.length, len(windows.calibration), len(windows.heldout))
        for name, size in zip(("window", "windows", "heldout_windows"), sizes, strict=True):
            if getattr(planned, name) != size:
                raise IdentityError(
                    f"the frozen tokens have a {name} of {size}, the plan {getattr(planned, name)}"
                )
        if windows.largest_id >= self.checkpoint.vocabulary:
            raise DatasetError(
                f"the frozen tokens hold id {windows.largest_id}, but the model knows {self.checkpoint.vocabulary}"
            )
        return windows


def open_planned(plan: Plan, model_id: str | None, trust: Trust, revision: str | None = None) -> PlannedModel:
    """``plan`` and its checkpoint.

    Args:
        plan: as read.
        model_id: what has the place of the checkpoint that the plan names; None for that one itself.
        trust: what of the checkpoint may run.
        revision: of a hub model; that of the plan if not given and the model has the plan's name.

    Raises:
        ModelError: nothing there; the hint says how to name another place.
    """
    name = model_id or plan.model.id
    if revision is None and name == plan.model.id:
        revision = plan.model.revision
    try:
        return PlannedModel(plan, open_checkpoint(name, revision, trust))
    except ModelError as error:
        if model_id is None:
            error.hint = "the plan names it so: say where the checkpoint is now with --model"
        raise
