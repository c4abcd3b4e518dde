"""What a run is told as: JSON, tables on a terminal, a page, and two of them side by side."""
