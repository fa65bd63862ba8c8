"""pyKT's side of the side-by-side; runs in an interpreter that has pykt-toolkit 0.0.38, which dkt-ray does not need."""
