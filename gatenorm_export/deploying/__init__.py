"""Bundles for servers: what a model server needs of a bundle, in the form that it takes."""
