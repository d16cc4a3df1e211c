"""Adapters: what they see of an edit, where they write, which edit applies to an input."""
