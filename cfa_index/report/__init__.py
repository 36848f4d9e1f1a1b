"""Pictures for people."""

from cfa_index.report.clouds import Cloud, feature_view
from cfa_index.report.colours import heat_colours
from cfa_index.report.panels import PatchPicture, query_panel
from cfa_index.report.pictures import context_box, overlay, save_picture
from cfa_index.report.plots import require_matplotlib
from cfa_index.report.verdicts import Outcome, VerdictPicture, verdict_panel

__all__ = [
    "Cloud",
    "Outcome",
    "PatchPicture",
    "VerdictPicture",
    "context_box",
    "feature_view",
    "heat_colours",
    "overlay",
    "query_panel",
    "require_matplotlib",
    "save_picture",
    "verdict_panel",
]
