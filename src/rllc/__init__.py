"""rllc."""
