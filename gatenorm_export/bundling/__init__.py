"""Bundles: make one folder that is all a server needs, open it, and check that it is what it was."""

from gatenorm_export.bundling.make import BundleRequest, make_bundle
from gatenorm_export.bundling.opening import Bundle, open_bundle
from gatenorm_export.bundling.place import check_place
from gatenorm_export.bundling.verifying import VerifyRequest, verify_bundle

__all__ = ["Bundle", "BundleRequest", "VerifyRequest", "check_place", "make_bundle", "open_bundle", "verify_bundle"]
