"""Adapters: what they read of an edit, where they write, and which edit applies to an input."""
