"""Hostile inputs by the thousand: valid seeds, structured mutations, and the library's readers run on each of them."""
