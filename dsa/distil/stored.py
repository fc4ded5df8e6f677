"""Between an indexer's trained parameters and the bytes in which its checkpoint stores them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from ...errors import ModelError
from ..checkpoint.architectures import plain_config, skeleton
from ..checkpoint.config import Checkpoint
from ..checkpoint.sites import expected_indexers
from ..checkpoint.stored.shards import Tensor
from ..checkpoint.stored.weights import StoredWeights
from ..stream.conversion import Conversion
from ..stream.formats.arithmetic import dequantised, scale_values
from ..stream.formats.foreign import Foreign
from ..stream.formats.quantised import FLOATS, QuantisedWeight
from ..stream.formats.recognise import checkpoint_format
from ..stream.layout import TYPES
from ..stream.load import stored_parts

# Types of exponents alone, which hold powers of 2.
_POWERS = ("F8_E8M0", "U8")
_LEAST_SCALE = 2.0**-100


@dataclass(frozen=True)
class StoredParameter:
    """Where a parameter of an indexer stands in the checkpoint.

    Args:
        name: of the tensor that holds its numbers.
        headers: of the stored tensors that it is made of, by name.
        quantised: how it is made of them; None where the tensor is the parameter.
    """

    name: str
    headers: Mapping[str, Tensor]
    quantised: QuantisedWeight | None

    def contents(self, values: torch.Tensor) -> dict[str, bytes]:
        """The bytes of the stored tensors, by name, that come nearest to ``values``, which are rounded."""
        return {name: _bytes(tensor) for name, tensor in self._tensors(values).items()}

    def rounded(self, values: torch.Tensor) -> torch.Tensor:
        """What ``values`` are once they were stored and read again, in fp32."""
        tensors = self._tensors(values)
        if self.quantised is None:
            return tensors[self.name].float()
        return dequantised(self.quantised, tensors, torch.float32)

    def _tensors(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        values = values.detach().cpu().float()
        if self.quantised is None:
            return {self.name: values.to(TYPES[self.headers[self.name].dtype])}
        return _quantised(values, self.quantised, self.headers)


def stored_indexers(
    checkpoint: Checkpoint, weights: StoredWeights, sites: Collection[int]
) -> dict[int, dict[str, StoredParameter]]:
    """Of each of ``sites``, where the parameters of its indexer are stored, by their names in the indexer.

    Only headers are read, and the model is built without weights.

    Raises:
        ModelError: a parameter is stored in a form that is not written back here.
    """
    known = checkpoint_format(checkpoint)
    if weights.pickled or isinstance(known, Foreign):
        kind = known.words if isinstance(known, Foreign) else "pickles"
        raise ModelError(
            f"the weights of {checkpoint.model_id!r} are in {kind}, to which no indexers are written back",
            hint="convert the checkpoint to safetensors in bfloat16",
        )
    headers = {name: tensor for shard in weights.shards for name, tensor in shard.tensors.items()}
    quantised = {} if known is None else {weight.name: weight for weight in known.weights(headers)}
    model = skeleton(plain_config(checkpoint.config), checkpoint.trust.remote_code)
    targets = {target.name: target for target in Conversion(model, {}, stored_parts(headers, known)).targets()}
    _, indexers = expected_indexers(model, checkpoint.site_layers)
    paths = {id(module): path for path, module in model.named_modules()}
    places: dict[int, dict[str, StoredParameter]] = {}
    for site in sorted(sites):
        module = indexers[checkpoint.site_layers[site]]
        places[site] = {}
        for local, _ in module.named_parameters():
            name = f"{paths[id(module)]}.{local}"
            target = targets.get(name)
            if target is None or target.converter is not None or len(target.sources) != 1:
                raise ModelError(f"{checkpoint.model_id!r} stores {name} in no tensor of its own")
            plain = target.sources[0][1]
            places[site][local] = _place(plain, headers, quantised.get(plain), checkpoint.model_id)
    return places


def _place(
    name: str, headers: Mapping[str, Tensor], quantised: QuantisedWeight | None, model_id: str
) -> StoredParameter:
    if quantised is None:
        return StoredParameter(name, {name: headers[name]}, None)
    codes = headers[quantised.codes].dtype
    if quantised.encoding != "number" or codes not in FLOATS or quantised.zeros or quantised.order:
        raise ModelError(
            f"{model_id!r} stores the indexer's {name} in {codes}, to which no indexers are written back",
            hint="give a copy of the checkpoint whose indexers are in bfloat16 or FP8",
        )
    return StoredParameter(name, {part: headers[part] for part in quantised.stored}, quantised)


def _quantised(
    values: torch.Tensor, weight: QuantisedWeight, headers: Mapping[str, Tensor]
) -> dict[str, torch.Tensor]:
    """FP8 numbers and a scale for each block, the largest number of a block at the end of FP8's range."""
    codes_type, scale_header = TYPES[headers[weight.codes].dtype], headers[weight.scales]
    largest = torch.finfo(codes_type).max
    scales = (_block_peaks(values, weight) / largest).clamp_min(_LEAST_SCALE)
    if scale_header.dtype in _POWERS:
        exponents = scales.log2().ceil().clamp(-127, 127)
        stored = (exponents + 127).to(torch.uint8)
        if scale_header.dtype == "F8_E8M0":
            stored = stored.view(torch.float8_e8m0fnu)
    else:
        stored = scales.to(TYPES[scale_header.dtype])
    spread = _spread(scale_values(stored), values.shape, weight.block)
    # Scales that were rounded down would put the largest number beyond the range.
    codes = (values / spread).clamp(-largest, largest).to(codes_type)
    tensors = {weight.codes: codes, weight.scales: stored.reshape(scale_header.shape)}
    if weight.extent is not None:
        tensors[weight.extent] = torch.tensor(weight.shape, dtype=TYPES[headers[weight.extent].dtype])
    return tensors


def _block_peaks(values: torch.Tensor, weight: QuantisedWeight) -> torch.Tensor:
    """The largest magnitude of each block, of the shape of the weight's grid."""
    if weight.block is None:
        return values.abs().amax().reshape(weight.grid)
    rows, columns = weight.block
    lacking = (-values.shape[1] % columns, -values.shape[0] % rows)
    padded = torch.nn.functional.pad(values.abs(), (0, lacking[0], 0, lacking[1]))
    tall, wide = weight.grid
    return padded.view(tall, rows, wide, columns).amax((1, 3))


def _spread(scales: torch.Tensor, shape: torch.Size, block: tuple[int, int] | None) -> torch.Tensor:
    if block is None:
        return scales.reshape(()).expand(shape)
    return scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[: shape[0], : shape[1]]


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
