"""Results become tables and figures. Nothing is computed or loaded here."""

from saelign.report.figures import write_figures
from saelign.report.tables import grid_tables, overview

__all__ = ["grid_tables", "overview", "write_figures"]
