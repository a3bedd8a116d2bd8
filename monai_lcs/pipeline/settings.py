"""The settings that belong to a trained network: how its input is made, what shape it has, where it answers."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from monai.config import PathLike
from monai.networks.layers import Norm
from monai.utils import look_up_option

from monai_lcs.atlas import ALIGNMENTS
from monai_lcs.files import write_atomically
from monai_lcs.inferers import LabelBoxInferer, LabelSweepInferer
from monai_lcs.labels import is_integer
from monai_lcs.networks import LabelConditionedUNet, MeanNetwork, check_halo
from monai_lcs.pipeline.weights_file import facts_of_weights

__all__ = ["Settings", "make_network", "on_device"]

MIN_MM, MAX_MM = 0.1, 20.0  # voxel sizes at which a network could work; beyond them memory or anatomy ends

PROPAGATED_MM = (1.0, 1.0, 1.0)  # without a network: coarser voxels would lose thin labels, and nothing is gained

NORMS = tuple(name.lower() for name in Norm.names)
NORM_ARGUMENTS = {"affine", "eps", "momentum", "num_groups", "track_running_stats"}
MOST_LEVELS, MOST_WEIGHTS = 12, 2**28  # 1 GiB: settings of a stranger must not take all memory
MOST_NETWORKS = 8

NETWORK = {"channels", "conditioning", "norm", "prior_logit", "up_activation"}  # what makes the shape of a network


@dataclass(frozen=True)
class Settings:
    """What a network was trained with and must be used with; ``model.pt`` holds it, ``model.json`` is a copy to read.

    The defaults are those of the bundle. They are written nowhere else.

    Args:
        align: how the atlas is aligned to each scan, one of :data:`monai_lcs.atlas.ALIGNMENTS`.
        spacing: voxel size in mm the network works at.
        margin_mm: a label is decoded within this distance of the box of its aligned atlas mask; ``None`` for
            everywhere.
        halo: how far the crops of features reach beyond a label's box, see
            :meth:`monai_lcs.networks.LabelConditionedUNet.decode`.
        channels: width of the network at each level.
        conditioning: where the network sees the label, see :class:`monai_lcs.networks.LabelConditionedUNet`.
        norm: normalization, as MONAI names it.
        prior_logit: see :class:`monai_lcs.networks.LabelConditionedUNet`.
        up_activation: see :class:`monai_lcs.networks.LabelConditionedUNet`; not as in the paper, since weights whose
            settings do not say it were trained without.
        fused: whether further atlases voted in training.
        soft_masks: whether the network saw the votes of the atlases, or the partial volumes of one atlas, instead of
            masks of 0 and 1; see :mod:`monai_lcs.labels.votes`.
        vote_weight: the part that the propagated masks of one atlas have in the answer, as partial volumes at the
            scan's voxels, 0 to less than 1; the network has the rest. It is for weights that are used with other
            atlases than they were trained with. They correct the masks then; from 0.5 on they move borders alone.
            Training does not use it, nor does inference with several atlases or with ``upsample``. See
            :class:`monai_lcs.inferers.ScanVotes`.
        propagated: names of the labels whose propagated mask is the answer, since the network was worse on the
            validation cases.
        further_networks: shapes of further networks whose weights are in the same file, each with ``channels``,
            ``conditioning``, ``norm``, ``prior_logit`` and ``up_activation``, by default as above. The answer is then
            the mean of all, see :class:`monai_lcs.networks.MeanNetwork`. Training does not make such weights:
            :func:`monai_lcs.pipeline.join_weights` does.

    Raises:
        ValueError: for an unknown ``align`` and for numbers that make no sense: NaN, negative, not as many as needed.

    Example:
        >>> Settings(align="affine").to_dict()["align"], Settings.from_dict({"align": "affine"}).align
        ('affine', 'affine')
    """

    align: str = "deformable"
    spacing: Sequence[float] = (2.0, 2.0, 2.0)
    margin_mm: float | None = 6.0
    halo: int | str = 0
    channels: Sequence[int] = (8, 16, 32, 64)
    conditioning: str | None = "multiscale"
    norm: str | Sequence[Any] | None = ("instance", {"affine": True})
    prior_logit: float = 2.0
    up_activation: bool = False
    fused: bool = False
    soft_masks: bool = False
    vote_weight: float = 0.0
    propagated: Sequence[str] = ()
    further_networks: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        # JSON has lists, where equal settings must be equal
        for name in ("spacing", "channels", "norm", "propagated", "further_networks"):
            object.__setattr__(self, name, _as_tuples(getattr(self, name)))
        look_up_option(self.align, ALIGNMENTS)
        check_halo(self.halo)
        self._check_input()
        self._check_network()
        self._check_further_networks()

    def _check_input(self) -> None:
        if not _numbers(self.spacing, 3) or not all(MIN_MM <= mm <= MAX_MM for mm in self.spacing):
            raise ValueError(
                f"`spacing` must be three voxel sizes in mm from {MIN_MM} to {MAX_MM}, got {self.spacing!r}."
            )
        if self.margin_mm is not None and not (_numbers([self.margin_mm]) and self.margin_mm >= 0):
            raise ValueError(f"`margin_mm` must be >= 0 or None, got {self.margin_mm!r}.")
        if not _numbers([self.vote_weight]) or not 0 <= self.vote_weight < 1:
            raise ValueError(f"`vote_weight` must be a number from 0 to less than 1, got {self.vote_weight!r}.")

    def _check_network(self) -> None:
        if not _numbers(self.channels) or len(self.channels) < 2 or not all(is_integer(n) for n in self.channels):
            raise ValueError(f"`channels` must be two or more widths, got {self.channels!r}.")
        if _most_weights(self.channels) > MOST_WEIGHTS or len(self.channels) > MOST_LEVELS:
            raise ValueError(
                f"`channels` must make a network of at most {MOST_LEVELS} levels and {MOST_WEIGHTS} weights, got"
                f" {str(self.channels)[:100]}."
            )
        self._check_norm()
        if not _numbers([self.prior_logit]):
            raise ValueError(f"`prior_logit` must be a number, got {self.prior_logit!r}.")
        for name in ("up_activation", "soft_masks"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` must be true or false, got {getattr(self, name)!r}.")
        if isinstance(self.propagated, str) or not all(isinstance(name, str) for name in self.propagated):
            raise ValueError(f"`propagated` must be names of labels, got {self.propagated!r}.")

    def _check_norm(self) -> None:
        """A norm has a name, and no argument that sizes it: the widths do."""
        if self.norm is not None and not isinstance(self.norm, str | Sequence):
            raise ValueError(f"`norm` must be a name, or a name and arguments, got {str(self.norm)[:100]}.")
        name, arguments = (self.norm, {}) if self.norm is None or isinstance(self.norm, str) else (*self.norm, {})[:2]
        if name is not None:
            look_up_option(str(name).lower(), NORMS)
        if not isinstance(arguments, Mapping) or not NORM_ARGUMENTS.issuperset(arguments):
            allowed = ", ".join(sorted(NORM_ARGUMENTS))
            raise ValueError(f"`norm` must be a name, or a name and {allowed}, got {str(self.norm)[:100]}.")

    def _check_further_networks(self) -> None:
        further = self.further_networks
        if not isinstance(further, tuple) or not all(isinstance(x, Mapping) and set(x) <= NETWORK for x in further):
            raise ValueError(f"`further_networks` must be a list of {sorted(NETWORK)}, got {str(further)[:100]}.")
        if len(further) >= MOST_NETWORKS:
            raise ValueError(f"`further_networks` must be fewer than {MOST_NETWORKS}, got {len(further)}.")
        weights = sum(_most_weights(each.channels) for each in self.of_each_network())  # which checks each by itself
        if further and (weights > MOST_WEIGHTS or any(each.conditioning is None for each in self.of_each_network())):
            raise ValueError(
                f"`further_networks` must see an atlas, and have at most {MOST_WEIGHTS} weights together,"
                f" got {str(further)[:100]}."
            )

    def of_each_network(self) -> list[Settings]:
        """The settings of each network by itself, this one's first.

        Example:
            >>> settings = Settings(further_networks=[{"conditioning": "shared"}])
            >>> [each.conditioning for each in settings.of_each_network()]
            ['multiscale', 'shared']
        """
        alone = replace(self, further_networks=()) if self.further_networks else self
        return [alone, *(replace(alone, **dict(shape)) for shape in self.further_networks)]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from what JSON holds; what is missing has its default.

        Raises:
            ValueError: for a name that is no setting.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(names))
        if unknown:
            raise ValueError(f"There are no settings {unknown}, only {sorted(names)}.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON holds them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def of_weights(cls, checkpoint: PathLike | None, defaults: Settings | None = None) -> Settings:
        """The settings that weights were trained with.

        Args:
            checkpoint: file of the weights; the settings are in it, or in the file of this name that ends in ``.json``,
                see :func:`monai_lcs.pipeline.weights_file.facts_of_weights`.
            defaults: for weights that come without settings, and for what their settings do not say. Without weights
                and defaults, the labels are propagated with voxels of 1 mm.

        Raises:
            ValueError: when a file cannot be read, or what it holds makes no sense.
        """
        if not checkpoint and defaults is None:
            return cls(spacing=PROPAGATED_MM)
        known = (defaults or cls()).to_dict()
        facts = facts_of_weights(checkpoint) if checkpoint else {}
        if not facts:
            return cls.from_dict(known)
        try:
            # as before these were settings
            before = {"up_activation": False, "soft_masks": False, "vote_weight": 0.0, "further_networks": []}
            kept = {**before, **facts}
            return cls.from_dict({name: kept.get(name, value) for name, value in known.items()})
        except (ValueError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(
                f"The settings of {checkpoint} must be those of a training, as model.json holds them: {reason}."
            ) from error

    def of_training(self) -> dict[str, Any]:
        """The settings that a training depends on, as JSON holds them: not how its weights are used afterwards.

        Example:
            >>> "vote_weight" in Settings().of_training()
            False
        """
        not_trained = {"vote_weight", "further_networks"}
        return {name: value for name, value in self.to_dict().items() if name not in not_trained}

    def write(self, path: PathLike) -> None:
        """Write the settings as JSON; the file appears complete or not at all."""
        text = json.dumps(self.to_dict(), indent=4)
        write_atomically(Path(path), lambda temporary: temporary.write_text(text))

    @property
    def sees_each_atlas(self) -> bool:
        """Whether the network looks at each of several atlases, instead of at what their votes make of them."""
        return not self.soft_masks and all(each.conditioning == "shared" for each in self.of_each_network())

    def label_sweep(self, labels: Any = None, **options: Any) -> LabelSweepInferer:
        """The inferer of these settings; ``options`` are its other arguments."""
        return LabelSweepInferer(
            labels=labels, margin_mm=self.margin_mm, halo=self.halo, votes=self.soft_masks, **options
        )

    def label_boxes(self) -> LabelBoxInferer:
        """The inferer to train with."""
        return LabelBoxInferer(margin_mm=self.margin_mm, halo=self.halo, votes=self.soft_masks)


def _as_tuples(value: Any) -> Any:
    """A value with tuples for lists, also inside mappings."""
    if isinstance(value, list | tuple):
        return tuple(_as_tuples(each) if isinstance(each, Mapping) else each for each in value)
    if isinstance(value, Mapping):
        return {name: _as_tuples(each) for name, each in value.items()}
    return value


def _most_weights(channels: Sequence[Any]) -> int:
    """About how many weights a network of these widths has, at most."""
    return 5 * 3**3 * sum(int(n) ** 2 for n in channels)


def _numbers(values: Any, count: int | None = None) -> bool:
    """Whether something is a list of finite numbers."""
    if not isinstance(values, Sequence) or isinstance(values, str) or (count is not None and len(values) != count):
        return False
    return all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in values)


def make_network(settings: Settings, **options: Any) -> LabelConditionedUNet | MeanNetwork:
    """The network of these settings, with random weights; of several, their mean.

    Args:
        settings: its shape.
        **options: further arguments of :class:`monai_lcs.networks.LabelConditionedUNet`; no dropout by default.

    Example:
        >>> make_network(Settings(channels=(4, 8))).channels
        (4, 8)
    """
    networks = [
        LabelConditionedUNet(
            **{"spatial_dims": 3, "dropout": 0.0, **{name: getattr(each, name) for name in NETWORK}, **options}
        )
        for each in settings.of_each_network()
    ]
    return MeanNetwork(networks) if len(networks) > 1 else networks[0]


def on_device(network: torch.nn.Module, device: torch.device | str) -> torch.nn.Module:
    """The network on a device, in the memory format that is the fastest there.

    Raises:
        ValueError: when there is no such device.

    Example:
        >>> net = on_device(make_network(Settings(channels=(4, 8))), "cpu")
        >>> next(net.parameters()).device.type
        'cpu'
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0][:150]
        raise ValueError(f"Cannot compute on the device {str(device)!r}: {reason}") from error
    on_cpu = torch.device(device).type == "cpu"
    memory_format = torch.channels_last_3d if on_cpu else torch.preserve_format
    return network.to(device, memory_format=memory_format)  # type: ignore[call-overload]
