"""Data sets as Lightning data modules: one file per kind of problem, which its sources share, and one per source."""
