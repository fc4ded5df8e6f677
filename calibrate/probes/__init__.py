"""Teacher-forced probes of long-context retrieval, for evaluation and for training, in the user's own text.

``make_probes(tokenizer, documents, length, count_per_kind, seed)`` gives a list of ``Probe``: ``token_ids`` of
exactly ``length`` tokens and ``answers``, the labels to score; label ``i`` is token ``i + 1``, which position
``i`` predicts. ``probe_mixture(tokenizer, documents, length, seed)`` yields training windows without end, with
``token_ids`` and ``answers`` likewise, and with names and numbers that no probe of ``make_probes`` has.
Documents are texts, or token ids without special ones.
"""

from .composition import ProbeWindow
from .evaluation import DEPTHS, KINDS, Probe, make_probes
from .mixture import probe_mixture

__all__ = ["DEPTHS", "KINDS", "Probe", "ProbeWindow", "make_probes", "probe_mixture"]
