"""The code that the recipes share."""
