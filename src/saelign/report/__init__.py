"""Results become tables and figures. Nothing is computed or loaded here."""

from saelign.report.figures import write_figures
from saelign.report.html import write_report
from saelign.report.subspaces import subspace_overview, subspace_table, write_subspace_tables
from saelign.report.tables import grid_tables, overview

__all__ = [
    "grid_tables",
    "overview",
    "subspace_overview",
    "subspace_table",
    "write_figures",
    "write_report",
    "write_subspace_tables",
]
