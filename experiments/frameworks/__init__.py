"""ADOPT in other frameworks: each job installs one, trains a tiny model with it offline, and keeps what has stepped."""
