"""`cfa-index backbones`: which networks there are, what they cost, and whether their weights are here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cfa_index_cli import options as o

if TYPE_CHECKING:
    from cfa_index import BackboneFacts


def backbones_command(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Networks to show, timm:NAME too; all of the registry if none is named."),
    ] = None,
    json_file: o.Json = None,
) -> None:
    """List the networks that `build --backbone` takes.

    Channels are those of the levels at strides 4, 8 and 16. The cost is that of one image of 224 px
    up to the coarsest level, counted while the network runs without values: GMAC are 10^9
    multiplications with their additions. Nothing is downloaded; a build fetches weights that are not
    here, and where there is no network it says which file to hand over with --weights.

    timm:NAME is any model of timm that offers features (pip install 'cfa-index[timm]'). Networks that
    become coarser give their last map at each stride; a plain vision transformer gives one level, its
    last block at stride 16 (8 for patches of 8): build it with --strides 16.

    Examples:

        cfa-index backbones

        cfa-index backbones timm:convnext_tiny timm:vit_small_patch14_dinov2
    """
    from cfa_index import backbone_facts, backbone_names, timm_offer
    from cfa_index.errors import WeightsError
    from cfa_index_cli.console import session, write_document

    with session(None) as out:
        facts = [backbone_facts(name) for name in names or backbone_names()]
        try:
            version, models = timm_offer()
        except WeightsError as error:
            timm, line = None, f"timm:NAME: {error.remedy}"
        else:
            timm = {"version": version, "models": models}
            line = f"timm:NAME: {models} models in timm {version}; nearly all offer features"
        header = ["backbone", "C at 4", "8", "16", "pixel x", "GMAC", "10^6 params", "weights", "here"]
        out.table("Channels by stride; cost of an image of 224 px", header, [_row(one) for one in facts])
        out.say(line)
    write_document(
        json_file,
        {"schema_version": 1, "backbones": [_document(one) for one in facts], "timm": timm},
    )


def _row(one: BackboneFacts) -> list[str]:
    return [
        one.name,
        *(str(one.channels.get(stride, "-")) for stride in (4, 8, 16)),
        one.normalisation,
        "-" if one.macs is None else f"{one.macs / 1e9:.2f}",
        "-" if one.parameters is None else f"{one.parameters / 1e6:.2f}",
        one.weights or "--weights FILE",
        one.missing or ("yes" if one.file else "no"),
    ]


def _document(one: BackboneFacts) -> dict[str, object]:
    return {
        "name": one.name,
        "channels": {str(stride): channels for stride, channels in one.channels.items()},
        "normalisation": one.normalisation,
        "macs": one.macs,
        "parameters": one.parameters,
        "weights": one.weights,
        "at_hand": one.file is not None,
        "file": str(one.file) if one.file else None,
        "missing": one.missing,
    }
