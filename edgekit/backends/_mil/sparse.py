"""Which weights of an ML Program are stored as a mask and what is not zero, and what that saves.

    float:  constexpr_sparse_to_dense(mask, values)                                              from iOS 16 on
    joint:  constexpr_sparse_to_dense(constexpr_sparse_blockwise_shift_scale(mask, integers))    from iOS 18 on
            constexpr_sparse_to_dense(constexpr_lut_to_sparse(mask, indices))

Before iOS 18 a weight is either sparse or compressed: the smaller of the two is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from edgekit.backends import _sparsity
from edgekit.backends._mil import weights
from edgekit.backends._mil.compressed import Compressed, Palette, Sparse
from edgekit.backends._mil.weights import Weight

if TYPE_CHECKING:
    from edgekit.core.lowering import Sparse as Wanted

OLDEST_IOS = 16
JOINT_IOS = 18
_UNMEASURED = (
    "sparse: speed stores weights so that the runtime may compute with them as sparse ones; whether a device is faster for"
    " it only a measurement on the device says"
)


@dataclass
class Choices:
    """What was decided of each weight.

    Attributes:
        floats: Weights that stay floats and become sparse, by name.
        joint: Names of weights whose compressed form is sparse as well.
        large: How many weights could have been.
        dense: Bytes of the weights that became sparse, as they would have been stored otherwise.
        packed: Their bytes now.
        instead: How many of the floats a scheme would have compressed.
        kept: How many stay dense for the sake of integer arithmetic.
    """

    floats: dict[str, Sparse] = field(default_factory=dict)
    joint: set[str] = field(default_factory=set)
    large: int = 0
    dense: float = 0.0
    packed: float = 0.0
    instead: int = 0
    kept: int = 0

    def add(self, weight: Weight, form: Compressed | None, wanted: Wanted, ios: int, *, computes: bool) -> None:
        """Decide for one weight.

        Args:
            weight: The weight.
            form: What the scheme makes of it; None where it stays float.
            wanted: What the lowering says.
            ios: The release that is built for.
            computes: Whether it is multiplied by integers: what a runtime does to those that are sparse is not known,
                so that only `size` makes them so.
        """
        if wanted == "off" or ios < OLDEST_IOS or weight.value.size <= weights.SMALL:
            return
        self.large += 1
        sizes = _sizes(weight, form, ios)
        best = min(sizes, key=lambda way: sizes[way])
        if best == "dense":
            return
        if computes and wanted != "size":
            self.kept += 1
            return
        self.dense, self.packed = self.dense + sizes["dense"], self.packed + sizes[best]
        if best == "joint":
            self.joint.add(weight.name)
        else:
            self.floats[weight.name] = Sparse(weight.value)
            self.instead += form is not None

    def notes(self, wanted: Wanted) -> tuple[str, ...]:
        """What is to be said."""
        count = len(self.floats) + len(self.joint)
        said = []
        if count:
            what = f"{count} of {self.large} large weights are stored sparse, as a bit mask and what is not zero"
            said.append(_sparsity.said(what, int(self.dense), int(self.packed)))
        if self.instead:
            said.append(
                f"{self.instead} of them stay floats: before iOS {JOINT_IOS} a weight is sparse or compressed, and sparse"
                " is smaller"
            )
        if self.kept:
            said.append(
                f"{self.kept} weights with enough zeros are stored dense, to be multiplied as integers; sparse: size stores"
                " them sparse"
            )
        if wanted == "speed" and count:
            said.append(_UNMEASURED)
        if wanted in ("size", "speed") and not count and not self.kept:
            said.append(_sparsity.NO_ZEROS)
        return tuple(said)


def _sizes(weight: Weight, form: Compressed | None, ios: int) -> dict[Literal["dense", "float", "joint"], float]:
    """Bytes by how it is stored, those ways alone that it can be stored in; scales and palettes are the same in all."""
    import numpy as np

    count, width = weight.value.size, weight.value.itemsize
    set_ = int(np.count_nonzero(weight.value))
    found: dict[Literal["dense", "float", "joint"], float] = {"dense": count * width}
    if set_ <= (1 - _sparsity.LEAST) * count:
        found["float"] = count / 8 + set_ * width
    if form is not None:
        found["dense"] = count * form.bits / 8
        left = int(np.count_nonzero(form.dense()))
        if ios >= JOINT_IOS and left <= (1 - _sparsity.LEAST) * count and not _is_scaled(form):
            found["joint"] = count / 8 + left * form.bits / 8
    return found


def _is_scaled(form: Compressed) -> bool:
    """Whether a palette has scales beside it, which no sparse operator takes."""
    return isinstance(form, Palette) and form.scale is not None


def any_pruned(exported: Any) -> bool:
    """Whether a program has weights with enough zeros to look at."""
    tensors = [*exported.state_dict.values(), *exported.constants.values()]
    return any(
        tensor.dim() > 1
        and tensor.is_floating_point()
        and tensor.numel() > weights.SMALL
        and float((tensor == 0).float().mean()) >= _sparsity.LEAST
        for tensor in tensors
        if hasattr(tensor, "is_floating_point")
    )
