"""Pictures for people."""

from cfa_index.report.clouds import Cloud, feature_view
from cfa_index.report.colours import heat_colours
from cfa_index.report.panels import PatchPicture, query_panel
from cfa_index.report.pictures import context_box, overlay, png_bytes, save_picture
from cfa_index.report.plots import require_matplotlib
from cfa_index.report.score_page import (
    FolderScores,
    RejectedRow,
    ScoredRow,
    ScorePage,
    score_page_text,
    write_score_page,
)
from cfa_index.report.score_survey import ScoreRows, Survey, Tally
from cfa_index.report.study_page import ratio_text, require_plotly, write_study_page
from cfa_index.report.study_plots import PLOT_FILES, study_plots
from cfa_index.report.study_row import StudyRow, accuracy_of
from cfa_index.report.verdicts import Outcome, VerdictPicture, verdict_panel

__all__ = [
    "PLOT_FILES",
    "Cloud",
    "FolderScores",
    "Outcome",
    "PatchPicture",
    "RejectedRow",
    "ScorePage",
    "ScoreRows",
    "ScoredRow",
    "StudyRow",
    "Survey",
    "Tally",
    "VerdictPicture",
    "accuracy_of",
    "context_box",
    "feature_view",
    "heat_colours",
    "overlay",
    "png_bytes",
    "query_panel",
    "ratio_text",
    "require_matplotlib",
    "require_plotly",
    "save_picture",
    "score_page_text",
    "study_plots",
    "verdict_panel",
    "write_score_page",
    "write_study_page",
]
