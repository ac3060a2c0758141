"""The loss of a run of AdamW that goes on with ADOPT."""
