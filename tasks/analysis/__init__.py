"""Answers from the lake: tables, the report, exports. Knows the lake and nothing above it."""
