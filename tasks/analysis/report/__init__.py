"""The report: one HTML file with its data, charts and code inside."""

from tasks.analysis.report.build import ReportMade, write_report

__all__ = ["ReportMade", "write_report"]
