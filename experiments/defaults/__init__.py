"""The protocol that chose the defaults: its tasks, its runs, its rule, its page."""
