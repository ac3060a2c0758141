"""The state of each parameter between two steps: its formats, its conversion, and its loading."""
