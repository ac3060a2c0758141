"""What becomes of the loss when a run of AdamW goes on with ADOPT."""
