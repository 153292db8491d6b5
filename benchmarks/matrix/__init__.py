"""The surgery on real exports: a table of tiny model families, a table of exporters, and a judge for each cell."""
