"""A loaded model: `ModelBundle.load(path).score(images)`.

Nothing is ever unpickled, and every file is compared with its checksum before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cfa_index.backbones import Backbone, backbone_from_state, forward_bytes, load_backbone
from cfa_index.bank import (
    LISTS_FILE,
    SearchIndex,
    bank_on,
    build_faiss,
    read_faiss,
    require_finite,
    shared_threads,
)
from cfa_index.bundle.generations import Content, changed_files, current_generation
from cfa_index.bundle.manifest import Manifest, damaged, read_manifest
from cfa_index.bundle.sources import EXEMPLARS_FILE, SOURCES_FILE, Sources, read_exemplars, read_sources
from cfa_index.bundle.verdict import ImageScore, ViewScore, image_score
from cfa_index.card_memory import make_room, memory_of
from cfa_index.descriptor import PatchDescriptor
from cfa_index.devices import check_inference, resolve_devices
from cfa_index.errors import BundleError, SpecError
from cfa_index.footprint import Footprint, scoring_footprint
from cfa_index.images import ImageBatch, Source, load_batches
from cfa_index.scorer import Scorer
from cfa_index.specs import CardSpec, Precision
from cfa_index.transfers import Pending

BACKBONE_FILE = "backbone.safetensors"
DESCRIPTOR_FILE = "descriptor.safetensors"
EPOCHS_FILE = "epochs.safetensors"
"""`<epoch>.weight` and `<epoch>.bias` of phi after each epoch, epochs from 1 and four digits wide."""
VECTORS_FILE = "vectors.npy"
BASELINE_FILE = "baseline.npy"
INDEX_FILE = "index.faiss"


class ModelBundle:
    """A loaded generation, ready to score. Make one with `load`.

    Attributes:
        path: the generation's folder.
        manifest: what it is.
        backbone, descriptor, initial_descriptor, bank, scorer: its parts, on one device, or the first of several;
            `initial_descriptor` is phi_0.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        backbone: Backbone,
        devices: Sequence[torch.device],
        *,
        card: CardSpec = CardSpec(),
        rebuild_index: bool = False,
    ) -> None:
        self.path = path
        self.manifest = manifest
        device = devices[0]
        self.backbone = backbone.to(device)
        tensors = _load_tensors(path / DESCRIPTOR_FILE)
        self.descriptor = _descriptor(manifest.channels, tensors, "phi").to(device)
        self.initial_descriptor = _descriptor(manifest.channels, tensors, "phi_0").to(device)
        vectors = load_array(path / VECTORS_FILE)
        has_baseline = BASELINE_FILE in manifest.files
        baseline = torch.tensor(load_array(path / BASELINE_FILE)) if has_baseline else None
        if baseline is not None and tuple(baseline.shape) != manifest.spec.features.grid:
            raise damaged(path / BASELINE_FILE, f"a baseline of shape {tuple(baseline.shape)}")
        index = None if manifest.index is None else _index(path, manifest, vectors, rebuild=rebuild_index)
        self.bank = bank_on(vectors, devices, index, card=card)
        self.scorer = Scorer(
            self.backbone,
            self.descriptor,
            self.bank,
            features=manifest.spec.features,
            score=manifest.spec.score,
            baseline=baseline,
        )

    @classmethod
    @shared_threads()
    def load(
        cls,
        path: Path | str,
        *,
        device: str = "cpu",
        card: CardSpec = CardSpec(),
        weights: Path | None = None,
        rebuild_index: bool = False,
        precision: Precision = "fp32",
        compiled: bool = False,
    ) -> ModelBundle:
        """Load a model.

        Args:
            path: <models>/<category>, or the folder of one generation.
            device: `auto`, `cpu`, `cuda`, `cuda:N`, or several cards as `cuda:0,1`, over which `card.spread`
                says how the bank is spread; all else is on the first.
            card: what the bank may take of a card; without meaning on the CPU.
            weights: file of the backbone's weights, for a model that was written without them; one that
                holds them takes the same file only.
            rebuild_index: make the index from the vectors and leave its file unread. FAISS's reader is native
                code: for a model whose origin is not trusted.
            precision: `bf16` for backbone, descriptor and the search's candidates in bfloat16. Distances are
                float32 and exact; the threshold stays that of float32 (docs/precision.md).
            compiled: compile the backbone, see `Backbone.for_inference`; give batches of one size then.

        Raises:
            BundleError: missing, damaged, unfinished, or of a newer version; or the weights are not
                those that it was made with.
            WeightsError: the weights are missing or unreadable.
            DeviceError: the device is not there, cannot multiply bfloat16, or there is no compiler.
            CardMemoryError: the card has no room for it.
            SpecError: another word for a device or a precision.
        """
        devices = resolve_devices(device)
        target = devices[0]
        check_inference(target, precision, compiled=compiled)
        folder = Path(path)
        if not (folder / "manifest.json").exists():
            folder = current_generation(folder)
        manifest = read_manifest(folder)
        cls.check_files(folder, manifest, leave_out=(INDEX_FILE, LISTS_FILE) if rebuild_index else ())
        features = manifest.spec.features
        embedded = BACKBONE_FILE in manifest.files
        if embedded and weights is None:
            backbone = backbone_from_state(
                features.backbone,
                features.strides,
                size_px=features.size_px,
                state=_load_tensors(folder / BACKBONE_FILE),
                origin=manifest.weights,
            )
        else:
            backbone = load_backbone(
                features.backbone, features.strides, size_px=features.size_px, weights=weights
            )
            if backbone.origin.sha256 != manifest.weights.sha256:
                raise BundleError(
                    expected=f"the weights {manifest.weights.sha256[:12]} that the model was built with",
                    got=f"{backbone.origin.sha256[:12]} ({backbone.origin.source})",
                    remedy="leave out --weights: the model holds its own"
                    if embedded
                    else "hand over the same file with --weights",
                )
        backbone.put_on(target).for_inference(precision, compiled=compiled)
        return cls(folder, manifest, backbone, devices, card=card, rebuild_index=rebuild_index)

    @staticmethod
    def check_files(folder: Path, manifest: Manifest, leave_out: Sequence[str] = ()) -> None:
        """Compare every file of a generation with its checksum.

        Raises:
            BundleError: one is missing or was changed.
        """
        kept = {name: checksum for name, checksum in manifest.files.items() if name not in leave_out}
        for name, wrong in changed_files(folder, kept):
            if wrong:
                raise damaged(folder / name, "a file that is missing or was changed")

    @property
    def sha256(self) -> str:
        """Of the manifest, which holds the checksums of all the files: two models that share it are one."""
        return str(self.manifest.to_dict()["sha256"])

    @property
    def threshold(self) -> float | None:
        """Scores above it are anomalous; None when no good images were held out."""
        return self.manifest.threshold.value if self.manifest.threshold else None

    def threshold_or(self, given: float | None) -> float | None:
        """The given threshold in place of the model's own, which None asks for.

        Raises:
            SpecError: it is not finite.
        """
        if given is not None and not math.isfinite(given):
            raise SpecError(
                expected="threshold to be a finite number",
                got=repr(given),
                remedy="give another value for threshold",
            )
        return self.threshold if given is None else given

    def batch_footprint(self, images: int) -> Footprint:
        """What scoring so many images at once takes of a card, beside the model itself."""
        features, score = self.manifest.spec.features, self.manifest.spec.score
        shortlist = self.manifest.index.shortlist if self.manifest.index else 0
        k = score.neighbors if score.patch_score == "certainty" else 1
        return scoring_footprint(
            images=images,
            size_px=features.size_px,
            network_bytes=forward_bytes(self.backbone, images, features.size_px),
            patches=features.patches_per_image,
            width=self.descriptor.width,
            k=k,
            shortlist=max(shortlist, k),
        )

    def require_room(self, images: int) -> None:
        """Refuse batches that the model's card has no room for.

        Raises:
            CardMemoryError: the message names what takes most.
        """
        if memory_of(self.bank.device) is not None:
            make_room(self.batch_footprint(images), self.bank.device)

    @shared_threads()
    def score(
        self,
        images: Iterable[Path | str | Image.Image | NDArray[Any] | Tensor],
        *,
        batch_size: int = 8,
        threads: int = 2,
        threshold: float | None = None,
    ) -> list[ImageScore]:
        """Score images with the preprocessing that the model was built with.

        Args:
            images: paths, PIL images, arrays (H, W), (H, W, 1|3|4) or tensors (1|3, H, W).
            batch_size: images a forward pass.
            threads: that decode.
            threshold: in place of the model's own.

        Raises:
            ImageError: one of them cannot be read.
            BankError: a feature of one is NaN or infinite.
            SpecError: the threshold is not finite.
        """
        limit = self.threshold_or(threshold)
        sources = (Path(image) if isinstance(image, str) else image for image in images)
        scored = self._score_views(sources, batch_size, threads)
        features = self.manifest.spec.features
        return [image_score(views, features, limit) for _, views in groupby(scored, key=lambda one: one[0])]

    def _score_views(
        self, sources: Iterable[Source], batch_size: int, threads: int
    ) -> Iterator[tuple[int, ViewScore, NDArray[np.float32]]]:
        """Position of its image, patches and map of each view. Raises ImageError, BankError."""
        for batch, pending in self.scorer.downloads.behind(self._queued(sources, batch_size, threads)):
            maps, patch_scores, ids, distances = (tensor.numpy() for tensor in pending.kept())
            require_finite(patch_scores)
            for number, frame in enumerate(batch.frames):
                view = ViewScore(
                    frame=frame,
                    patch_scores=patch_scores[number],
                    neighbor_ids=ids[number],
                    neighbor_distances=distances[number],
                )
                yield batch.positions[number], view, maps[number]

    def _queued(
        self, sources: Iterable[Source], batch_size: int, threads: int
    ) -> Iterator[tuple[ImageBatch, Pending]]:
        """Batches that the device is at work on. Raises ImageError."""
        features = self.manifest.spec.features
        for batch in load_batches(sources, features, batch_size=batch_size, threads=threads):
            if batch.errors:
                raise batch.errors[0][1]
            scored = self.scorer.score_pixels(batch.pixels, batch.frames, all_neighbors=True)
            by_patch = (len(batch.frames), *features.grid, -1)
            ids, distances = scored.neighbors.ids.view(by_patch), scored.neighbors.sq_distances.sqrt()
            found = [scored.maps, scored.patch_scores, ids, distances.view(by_patch)]
            yield batch, self.scorer.downloads.start(found)

    def epoch_descriptors(self) -> list[PatchDescriptor]:
        """phi after each epoch, first to last, on the model's device; memory is one phi an epoch.

        Raises:
            BundleError: the model was not trained with `keep_epochs`.
        """
        if EPOCHS_FILE not in self.manifest.files:
            raise BundleError(
                expected=f"{self.manifest.category} to hold phi after each epoch",
                got=f"generation {self.manifest.generation} without them",
                remedy="train it with --keep-epochs",
            )
        tensors = _load_tensors(self.path / EPOCHS_FILE)
        return epoch_descriptors(tensors, self.initial_descriptor)

    @cached_property
    def sources(self) -> Sources:
        """The source of each memory, M of them."""
        return read_sources(self.path / SOURCES_FILE)

    @cached_property
    def exemplars(self) -> list[bytes]:
        """A JPEG crop around each memory's source patch; empty for a bank too large to carry them."""
        return read_exemplars(self.path / EXEMPLARS_FILE) if EXEMPLARS_FILE in self.manifest.files else []


def epoch_descriptors(tensors: Mapping[str, Tensor], phi_0: PatchDescriptor) -> list[PatchDescriptor]:
    """phi after each epoch, first to last, from `EPOCH.weight` and `EPOCH.bias`; the rest is that of phi_0."""
    return [
        PatchDescriptor(
            phi_0.channels,
            weight=tensors[f"{epoch}.weight"],
            bias=tensors[f"{epoch}.bias"],
            mean=phi_0.mean,
            std=phi_0.std,
        ).to(phi_0.mean.device)
        for epoch in sorted({name.partition(".")[0] for name in tensors}, key=int)
    ]


def descriptor_tensors(descriptor: PatchDescriptor, prefix: str) -> dict[str, Tensor]:
    """A descriptor's tensors under a prefix, for safetensors."""
    state = descriptor.state_dict()
    return {f"{prefix}.{name}": tensor.detach().cpu().clone() for name, tensor in state.items()}


def index_contents(index: SearchIndex | None) -> dict[str, Content]:
    """The files of an index; none of Flat's."""
    if index is None:
        return {}
    contents: dict[str, Content] = {INDEX_FILE: index.write}
    if index.lists is not None:
        contents[LISTS_FILE] = index.lists
    return contents


def load_array(path: Path) -> NDArray[np.float32]:
    """A .npy file, memory mapped; writing into it would change memory only. Raises BundleError."""
    try:
        # Not np.load, which reads archives and pickles too.
        array: NDArray[np.float32] = np.lib.format.open_memmap(path, mode="c")
    except ValueError as error:
        raise damaged(path, "a file that is no plain array") from error
    if array.dtype != np.float32:
        raise damaged(path, f"an array of {array.dtype}")
    return array


def _index(path: Path, manifest: Manifest, vectors: NDArray[np.float32], *, rebuild: bool) -> SearchIndex:
    """The index of a generation from its file, or made again from the vectors."""
    state = manifest.index
    assert state is not None, "Flat needs no index"
    if INDEX_FILE in manifest.files and not rebuild:
        return read_faiss(path / INDEX_FILE, state, vectors.shape)
    made = build_faiss(vectors, state.factory, seed=manifest.spec.seed)
    return SearchIndex(made, state).tuned(state.parameters, state.shortlist)


def load_descriptor(path: Path, manifest: Manifest) -> PatchDescriptor:
    """phi of a generation, on the CPU, without the rest of the model. Raises BundleError."""
    return _descriptor(manifest.channels, _load_tensors(path / DESCRIPTOR_FILE), "phi")


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise damaged(path, "a file that is no safetensors file") from error
    return tensors


def _descriptor(channels: Sequence[int], tensors: Mapping[str, Tensor], prefix: str) -> PatchDescriptor:
    names = ("weight", "bias", "mean", "std")
    parts = {name: tensors[f"{prefix}.{name}"] for name in names}
    return PatchDescriptor(
        channels, weight=parts["weight"], bias=parts["bias"], mean=parts["mean"], std=parts["std"]
    )
