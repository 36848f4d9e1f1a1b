"""`cfa-index build`: good images to a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cfa_index.specs import LARGEST_SEED
from cfa_index_cli import options as o

if TYPE_CHECKING:
    from cfa_index import BuildReport, GoodImages, ModelSpec


def build_command(
    category: Annotated[
        str | None,
        typer.Option("--category", "-c", help="Name of the product, or 'all' under the data root."),
    ] = None,
    normals: Annotated[
        Path | None,
        typer.Option("--normals", help="A plain folder of good images, in place of the MVTec layout."),
    ] = None,
    data_root: o.DataRoot = o.DATA_ROOT,
    models_dir: o.ModelsDir = o.MODELS_DIR,
    features_dir: o.FeaturesDir = o.FEATURES_DIR,
    preset: Annotated[
        o.Preset, typer.Option("--preset", help="Where all settings start from.")
    ] = o.Preset.RECOMMENDED,
    backbone: Annotated[
        str | None, typer.Option("--backbone", help="wide_resnet50_2, resnet18 or efficientnet_lite0.")
    ] = None,
    weights: o.Weights = None,
    geometry: Annotated[
        o.GeometryName | None,
        typer.Option("--geometry", help="Look at the whole frame, its centre crop, or a letterbox."),
    ] = None,
    size: Annotated[
        int | None, typer.Option("--size", help="Side of the network's square in pixels.")
    ] = None,
    strides: Annotated[
        str | None, typer.Option("--strides", help="Pyramid levels, such as 8,16 or 4,8,16.")
    ] = None,
    init: Annotated[o.InitName | None, typer.Option("--init", help="Where the descriptor starts.")] = None,
    gamma_d: Annotated[
        str | None,
        typer.Option("--gamma-d", help="Descriptor width as a share of the features', such as 1/4."),
    ] = None,
    method: Annotated[
        o.MethodName | None, typer.Option("--method", help="How patches become memories.")
    ] = None,
    bank_size: Annotated[int | None, typer.Option("--bank-size", help="Memories in the bank.")] = None,
    gamma_c: Annotated[
        str | None,
        typer.Option("--gamma-c", help="Memories as a share of an image's patches, in place of --bank-size."),
    ] = None,
    neighbors: Annotated[int | None, typer.Option("--neighbors", help="K of the score (Eq. 5).")] = None,
    held_out: Annotated[
        str | None, typer.Option("--held-out", help="Share of good images kept for the threshold.")
    ] = None,
    false_alarm_rate: Annotated[
        str | None, typer.Option("--false-alarm-rate", help="Share of good images that may score above it.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=LARGEST_SEED, help="Of every random choice.")
    ] = None,
    embed_weights: Annotated[
        bool, typer.Option("--embed-weights/--no-embed-weights", help="Put the backbone into the model.")
    ] = True,
    device: o.Device = "auto",
    threads: o.Threads = None,
    json_file: o.Json = None,
    events: o.Events = None,
    config: o.Config = None,
) -> None:
    """Learn what is normal from good images: features, bank, index, threshold.

    Reads DATA_ROOT/CATEGORY/train/good (or --normals DIR) and writes MODELS_DIR/CATEGORY. Features
    are kept in FEATURES_DIR, so that a second build, or one that was stopped, only computes what is
    missing.

    Examples:

        cfa-index build --category cable

        cfa-index build --normals good_parts/ --category bracket --backbone resnet18

        cfa-index build -c cable --preset paper --gamma-d 1/4 --gamma-c 1/4
    """
    del config  # its callback has done the work
    if category is None and normals is None:
        raise typer.BadParameter("give --category NAME (or 'all'), or --normals DIR")
    if bank_size is not None and gamma_c is not None:
        raise typer.BadParameter("give --bank-size or --gamma-c, not both")
    from cfa_index import build, load_backbone, resolve_device, set_threads
    from cfa_index_cli.console import session, write_document

    spec = _spec(
        preset=preset,
        backbone=backbone,
        geometry=geometry,
        size=size,
        strides=strides,
        init=init,
        gamma_d=gamma_d,
        method=method,
        bank_size=bank_size,
        gamma_c=gamma_c,
        neighbors=neighbors,
        held_out=held_out,
        false_alarm_rate=false_alarm_rate,
        seed=seed,
    )
    if threads is not None:
        set_threads(threads)
    sources = _sources(category, normals, data_root)
    reports = []
    with session(events) as out:
        network = load_backbone(
            spec.features.backbone,
            spec.features.strides,
            size_px=spec.features.size_px,
            weights="random" if weights == "random" else Path(weights) if weights else None,
            seed=spec.seed,
        )
        if network.origin.is_random:
            out.say(
                f"warning: {network.origin.source} weights: for tests and speed only, scores mean nothing"
            )
        for good in sources:
            report = build(
                good,
                spec,
                backbone=network,
                models_dir=models_dir,
                features_dir=features_dir,
                device=resolve_device(device),
                threads=threads or 2,
                embed_weights=embed_weights,
                listener=out.listener,
            )
            reports.append(report)
            out.say(_summary(report))
    documents = [_document(report) for report in reports]
    write_document(
        json_file, documents[0] if len(documents) == 1 else {"schema_version": 1, "models": documents}
    )
    if any(report.rejected for report in reports):
        raise typer.Exit(3)


def _spec(
    *,
    preset: o.Preset,
    backbone: str | None,
    geometry: o.GeometryName | None,
    size: int | None,
    strides: str | None,
    init: o.InitName | None,
    gamma_d: str | None,
    method: o.MethodName | None,
    bank_size: int | None,
    gamma_c: str | None,
    neighbors: int | None,
    held_out: str | None,
    false_alarm_rate: str | None,
    seed: int | None,
) -> ModelSpec:
    """The preset with what was given on the command line in its place."""
    from cfa_index import preset as named

    base = named(preset.value)
    bank: dict[str, object] = {"method": method.value if method else None, "size": bank_size}
    if gamma_c is not None:
        bank = {**bank, "gamma_c": o.parse_ratio(gamma_c)}
    return o.override(
        base,
        features={
            "backbone": backbone,
            "geometry": geometry.value if geometry else None,
            "size_px": size,
            "strides": o.parse_strides(strides) if strides else None,
        },
        descriptor={
            "init": init.value if init else None,
            "gamma_d": o.parse_ratio(gamma_d) if gamma_d else None,
        },
        bank=bank,
        use_gamma_c=gamma_c is not None,
        score={
            "neighbors": neighbors,
            "false_alarm_rate": o.parse_ratio(false_alarm_rate) if false_alarm_rate else None,
        },
        top={"held_out": o.parse_ratio(held_out) if held_out else None, "seed": seed},
    )


def _sources(category: str | None, normals: Path | None, data_root: Path) -> list[GoodImages]:
    from cfa_index import GoodImages, list_categories, open_category, plain_folder
    from cfa_index.errors import DatasetError

    if normals is not None:
        images = plain_folder(normals)
        return [GoodImages(category=category or normals.resolve().name, source=normals, images=images)]
    assert category is not None
    names = list_categories(data_root) if category == "all" else [category]
    if not names:
        raise DatasetError(
            expected=f"categories with train/good below {data_root}", got="none", remedy="check --data-root"
        )
    found = [open_category(data_root, name) for name in names]
    return [GoodImages(category=one.name, source=one.folder, images=one.train_good()) for one in found]


def _summary(report: BuildReport) -> str:
    manifest = report.manifest
    threshold = manifest.threshold
    limit = (
        f"threshold {threshold.value:.4g} for a false-alarm rate of {threshold.supported_rate:.3g}"
        f" ({threshold.count} held-out images)"
        if threshold
        else "no threshold (no images held out)"
    )
    rejected = f", {report.rejected} rejected" if report.rejected else ""
    return (
        f"{manifest.category}: generation {manifest.generation}, {report.images} images{rejected}, "
        f"bank of {report.memories} x {report.width}, {limit}\n{report.path}"
    )


def _document(report: BuildReport) -> dict[str, object]:
    return {
        "schema_version": 1,
        "category": report.manifest.category,
        "generation": report.manifest.generation,
        "path": str(report.path),
        "store": str(report.store),
        "images": report.images,
        "images_rejected": report.rejected,
        "memories": report.memories,
        "width": report.width,
        "threshold": report.manifest.threshold.value if report.manifest.threshold else None,
        "weights": report.manifest.weights.source,
        "spec": report.manifest.spec.to_dict(),
    }
