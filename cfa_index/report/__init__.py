"""Pictures for people."""

from cfa_index.report.colours import heat_colours
from cfa_index.report.panels import PatchPicture, query_panel
from cfa_index.report.pictures import context_box, overlay, save_picture

__all__ = ["PatchPicture", "context_box", "heat_colours", "overlay", "query_panel", "save_picture"]
