"""Results become tables and figures. Nothing is computed or loaded here."""

from saelign.report.figures import write_figures
from saelign.report.tables import grid_table, overview

__all__ = ["grid_table", "overview", "write_figures"]
