"""The page of a run: its templates, its pictures, and the caveats that apply to it."""
