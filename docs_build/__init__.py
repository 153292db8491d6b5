"""What the documentation site makes at build time: the reference of the command line and of the Python packages."""
